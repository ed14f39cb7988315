/* Connections that outlive their worker, for spin: accept, answer, hand over, adopt, close.
 *
 * Each store to a table, each byte that is written to a connection, each read from it and each
 * message is a step of its own, in the order of the code. A worker may be killed between any two
 * steps; then the kernel closes its descriptors, and the messages that it had sent stay. That the
 * keeper has a duplicate of a worker's end of the channel changes nothing of that: it reads what the
 * worker has sent, and gives away what the worker has not adopted.
 *
 *     process      how many              code
 *     Hand         workers x clients     registry/server/keeping_protocol.py, connections.py: what a
 *                                        worker does with one connection
 *     Hear         workers               registry/server/kept.py, channel.py
 *     Keeper       1                     registry/server/keeper.py, under its lock: one step
 *     Client       clients               sends two requests, at once or in pieces, reads, and leaves
 *
 * Beside them, Killer kills, and Last comes when nothing more can happen. Workers 0 and 1 are there
 * from the start; each death starts another one.
 *
 * A request has two bytes, and so has a response: its head and its body. So the right stream of a
 * client is 0 1 2 3: byte `2 * r + p` is byte `p` of the response to request `r`. Time is left out,
 * and so are requests that kill workers, and what the next worker makes of `is_last`.
 *
 * The bounds are macros, and so are the deliberate bugs, BUG_...; tools/models/bounds.py uses them.
 */

#ifndef CLIENTS
#define CLIENTS 1
#endif
#ifndef REQUESTS
#define REQUESTS 2                 /* of each client */
#endif
#ifndef WORKERS
#define WORKERS 3                  /* successive ones; two at the start */
#endif
#ifndef KILLS
#define KILLS 2                    /* workers that are killed */
#endif
#ifndef LEAVES
#define LEAVES 0                   /* workers that are replaced, and hand over */
#endif
#ifndef QUITS
#define QUITS 0                    /* 1: a client may leave before it has everything */
#endif
#ifndef PIECES
#define PIECES 0                   /* 1: the bytes of a request may come one by one */
#endif
#ifndef TEXTS
#define TEXTS 1                    /* responses that are in the record as a whole, one bit each */
#endif
#ifndef LONG
#define LONG 0                     /* responses with a head that is too long for a record */
#endif
#ifndef MOST
#define MOST 2                     /* connections that the keeper has a duplicate of */
#endif
#ifndef BEGUN
#define BEGUN 0                    /* 1: worker 0 has the first connection; 2: and was killed then */
#endif
#ifndef WAITS
#define WAITS 1                    /* 1: the kernel may not take a message at once */
#endif

#ifndef BACK
#define BACK 0                     /* 1: the keeper may take back what a worker has not received */
#endif

#define NONE 15
#define UNKNOWN 14
#define ALL (2 * REQUESTS)         /* bytes of all requests of a client, and of all responses */
#define RECORDS 2                  /* of a table */

/* What the kernel keeps of a connection. */
byte come[CLIENTS];                /* bytes of requests that have come */
byte taken[CLIENTS];               /* ... that were read */
byte written[CLIENTS];             /* bytes that were written */
bool left[CLIENTS];                /* its client has closed it */
bool shut[CLIENTS];                /* this side has ended it */
byte refs[CLIENTS];                /* descriptors, also in messages on their way */
bool accepted[CLIENTS];

/* The tables: of each record two responses, and `turn`. */
#define RECORD(w, i) ((w) * RECORDS + (i))
#define LAST(n) ((n) * 2 + turn[n])
#define NEXT(n) ((n) * 2 + 1 - turn[n])
#define SIZE_OF_ALL (WORKERS * RECORDS)
bool turn[SIZE_OF_ALL];
byte r_written[SIZE_OF_ALL * 2];
byte r_taken[SIZE_OF_ALL * 2];
byte r_request[SIZE_OF_ALL * 2];   /* bytes of the request, still in the socket */
byte r_whole[SIZE_OF_ALL * 2];     /* bytes of head and body; 0: no response yet */
byte r_text[SIZE_OF_ALL * 2];      /* bytes of the text */
byte r_of[SIZE_OF_ALL * 2];        /* whose response the text is */

/* Messages: kind, index, connection. What the kernel has not taken waits in the worker. */
#define CLOSED 2
#define ADOPTED 3
#define HAND_OVER 4
chan up[WORKERS] = [4] of { byte, byte, byte };
chan waiting[WORKERS] = [3] of { byte, byte, byte };
#define ADOPT 5
#define LEAVE 6
chan down[WORKERS] = [3] of { byte, byte };
bool reset[WORKERS];               /* it was killed, and had not read all messages */

/* The workers. */
bool dead[WORKERS];
bool buried[WORKERS];              /* the keeper knows that it is dead */
bool leaving[WORKERS];
bool used[SIZE_OF_ALL];            /* the worker uses that record */
bool closed[SIZE_OF_ALL];          /* its connection is kept no more, and CLOSED is not sent yet */
byte begun[WORKERS * CLIENTS];     /* 1: this worker goes on with that connection */
byte place[WORKERS * CLIENTS];     /* the record that the connection has; NONE: it is not kept */
#define HANDS(w, c) ((w) * CLIENTS + (c))

/* The keeper. */
bool ready[WORKERS];
byte clients[SIZE_OF_ALL];         /* the connection of each record */
byte coming[CLIENTS];              /* the worker that a connection is on its way to */
bool homeless[CLIENTS];
bool kept[CLIENTS];                /* it has a duplicate */
byte l_written[CLIENTS];           /* the copy of a last response */
byte l_taken[CLIENTS];
byte l_request[CLIENTS];
byte l_whole[CLIENTS];
byte l_text[CLIENTS];
byte l_of[CLIENTS];

/* What only the model knows. */
byte kills = KILLS;
byte leaves = LEAVES;
byte next = 2;                     /* the worker that starts next */
byte touches[CLIENTS];             /* the worker that may read and write; NONE: no worker */
byte owner[SIZE_OF_ALL];           /* the connection that a record is of */
bool unkept[CLIENTS];              /* the keeper has no room for it */
bool holds[WORKERS * CLIENTS];     /* the worker has a descriptor of it */
byte starts = 0;                   /* workers that are about to start */
bool excused[CLIENTS];             /* docs/operations.md says that this client is cut */
bool cut[CLIENTS];

#define ALIVE !dead[w]
#define DIES dead[w] -> goto gone
#define STEP(what) if :: atomic { ALIVE -> what } :: DIES fi

/* Descriptors. */

inline unref(c) {
    assert(refs[c] > 0);
    refs[c]--;
    if
    :: refs[c] == 0 && !left[c] ->
        cut[c] = true;
        assert(written[c] == ALL || excused[c])               /* no connection is lost */
    :: else
    fi
}

/* Messages of a worker. `then` of Channel.send is in `was_sent`. */

inline was_sent(w, kind, i, c) {
    if
#ifndef BUG_RECORD_FREE_BEFORE_CLOSED_IS_SENT
    :: kind == CLOSED -> used[RECORD(w, i)] = false
#endif
#ifndef BUG_TOUCHES_BEFORE_ADOPTED_IS_SENT
    :: kind == ADOPTED -> begun[HANDS(w, c)] = 1
#endif
    :: else
    fi
}

inline send(w, kind, i, c) {       /* one step: Channel.send */
    if
    :: empty(waiting[w]) -> up[w]!kind, i, c; was_sent(w, kind, i, c)
    :: WAITS && nfull(waiting[w]) -> waiting[w]!kind, i, c
    fi;
#ifdef BUG_RECORD_FREE_BEFORE_CLOSED_IS_SENT
    if :: kind == CLOSED -> used[RECORD(w, i)] = false :: else fi;
#endif
#ifdef BUG_TOUCHES_BEFORE_ADOPTED_IS_SENT
    if :: kind == ADOPTED -> begun[HANDS(w, c)] = 1 :: else fi;
#endif
}

#define CAN_SEND(w) (nfull(up[w]) && nfull(waiting[w]))

/* What a worker does with a connection. */

#define N RECORD(w, place[HANDS(w, c)])
#define IS_KEPT (place[HANDS(w, c)] != NONE)

inline put(r, p) {                 /* a byte reaches the kernel */
    if
    :: atomic { ALIVE && left[c] } goto close                 /* a write fails */
    :: atomic { ALIVE && !left[c] ->
                assert(touches[c] == w);                      /* never two processes */
                assert(!shut[c]);
                assert(2 * (r) + (p) == written[c]);          /* a prefix, nothing twice */
                written[c]++ }
    :: DIES
    fi
}

inline take(count) {               /* bytes are read from the socket */
    assert(touches[c] == w);
    taken[c] = taken[c] + count;
    assert(taken[c] <= come[c])
}

/* Both first workers are alike, so the first connection is that of worker 0 while it is there. */
#define IS_TURN (w == 0 || !ready[0] || accepted[0])
#define MAY_ACCEPT(c) (!accepted[c] && ready[w] && nfull(down[w]) && IS_TURN)

#define MAY_LEAVE leaving[w] && IS_KEPT

proctype Hand(byte w; byte c) {
    byte sent, got, request, at, had;    /* `got`: bytes that this worker knows were read */
    bool midway;

#if BEGUN == 1
    if :: w == 0 && c == 0 -> goto idle :: else fi;
#endif
end:
    if
    :: atomic { ALIVE && begun[HANDS(w, c)] == 1 -> begun[HANDS(w, c)] = 0;
                assert(touches[c] == NONE); touches[c] = w }
        goto go_on
    :: DIES
    fi;

idle:   /* KeptProtocol.readable */
    if
    :: atomic { ALIVE && come[c] - taken[c] >= 2 && !midway -> request = 2; at = 0 } goto answer
    :: atomic { ALIVE && (come[c] - taken[c] == 1 || (midway && come[c] > taken[c])) ->
                had = come[c] - taken[c]; take(had); got = got + had; had = 0;
                midway = true; excused[c] = true }            /* it has a body */
        if
        :: got - sent >= 2 -> atomic { request = 0; at = 0; goto answer }
        :: else -> goto idle
        fi
    :: atomic { ALIVE && come[c] == taken[c] && left[c] } goto close
    :: atomic { ALIVE && MAY_LEAVE && !midway } goto hand_over
    :: DIES
    fi;

answer:   /* KeptProtocol.write_head: Record.begin */
    if
    :: atomic { ALIVE && MAY_LEAVE } goto hand_over
    :: atomic { ALIVE && IS_KEPT && !((LONG >> (sent / 2)) & 1) }
#ifdef BUG_TURN_BEFORE_RESPONSE
        STEP(turn[N] = 1 - turn[N]);
#define FILLED LAST(N)
#else
#ifdef BUG_ONE_RESPONSE_IN_A_RECORD
#define FILLED LAST(N)
#else
#define FILLED NEXT(N)
#endif
#endif
#ifdef BUG_WRITES_BEFORE_IT_NOTES
        put(sent / 2, 0);
        at = 1;
#endif
        STEP(assert(owner[N] == c); r_written[FILLED] = sent);           /* K3 */
        STEP(r_taken[FILLED] = (got > sent + 2 - request -> UNKNOWN : got);
             r_request[FILLED] = request; r_whole[FILLED] = 2);
        STEP(r_text[FILLED] = 1; r_of[FILLED] = sent / 2);
#if !defined(BUG_TURN_BEFORE_RESPONSE) && !defined(BUG_ONE_RESPONSE_IN_A_RECORD)
        STEP(turn[N] = 1 - turn[N])                           /* K1 */
#endif
    :: atomic { ALIVE && IS_KEPT && ((LONG >> (sent / 2)) & 1) ->
                excused[c] = true; closed[N] = true; place[HANDS(w, c)] = NONE }
    :: atomic { ALIVE && !IS_KEPT }
    :: DIES
    fi;
#ifdef BUG_TAKES_REQUEST_FIRST
    STEP(take(request); got = got + request; request = 0);
#endif

write:
    if
    :: atomic { ALIVE && MAY_LEAVE } goto hand_over
    :: atomic { ALIVE && IS_KEPT && ((TEXTS >> (sent / 2)) & 1) && r_text[LAST(N)] == 1 &&
                r_whole[LAST(N)] == 2 -> r_text[LAST(N)] = 2 }           /* write_body */
        goto write
    :: atomic { ALIVE && at == 0 } put(sent / 2, 0); at = 1; goto write
    :: atomic { ALIVE && at == 1 &&
                !(IS_KEPT && ((TEXTS >> (sent / 2)) & 1) && r_text[LAST(N)] == 1) }
        put(sent / 2, 1);
        at = 2
    :: DIES
    fi;

conclude:   /* the kernel has the whole response: K2 */
    STEP(take(request); got = got + request; request = 0; at = 0; sent = sent + 2;
         midway = (midway && got > sent);
         if :: got == sent && IS_KEPT -> excused[c] = false :: else fi);
    if
    :: got - sent >= 2 -> goto answer
    :: else -> goto idle
    fi;

go_on:   /* KeptProtocol.go_on and continuation */
    STEP(sent = r_written[LAST(N)]; got = taken[c]; at = 0; request = 0;
         if
         :: written[c] < sent || written[c] > sent + r_whole[LAST(N)] ||
            r_taken[LAST(N)] == UNKNOWN -> at = UNKNOWN
         :: else -> at = written[c] - sent
         fi);
    if
    :: at == UNKNOWN -> goto give_up
    :: at != UNKNOWN && at == r_whole[LAST(N)] ->
        STEP(request = r_taken[LAST(N)] + r_request[LAST(N)] - taken[c];
             sent = sent + r_whole[LAST(N)]);
        if
        :: request != 0 && request != r_request[LAST(N)] -> goto give_up
        :: else
        fi;
        STEP(take(request); got = got + request; request = 0; at = 0;
             if :: got == sent -> excused[c] = false :: else fi);
        goto idle
    :: at != UNKNOWN && at < r_whole[LAST(N)] ->
        if
        :: taken[c] != r_taken[LAST(N)] -> goto give_up
        :: taken[c] == r_taken[LAST(N)] && r_text[LAST(N)] == 2 ->
            atomic { request = r_request[LAST(N)]; had = r_of[LAST(N)] }
            if :: at == 0 -> put(had, 0); at = 1 :: else fi;
            put(had, 1);
            atomic { had = 0; at = 2 }
            goto conclude
        :: taken[c] == r_taken[LAST(N)] && r_text[LAST(N)] != 2 ->
            if
            :: r_request[LAST(N)] == 0 -> goto give_up
            :: r_request[LAST(N)] != 0 && at == 0 -> goto idle           /* it was not begun */
            :: r_request[LAST(N)] != 0 && at == 1 ->
                /* it makes the response to the request in the socket again, and compares */
                if
                :: r_of[LAST(N)] != taken[c] / 2 -> goto give_up
                :: else -> request = r_request[LAST(N)]
                fi;
                put(taken[c] / 2, 1);
                at = 2;
                goto conclude
            fi
        fi
    fi;

give_up:
    at = 0;
    goto close;

hand_over:   /* KeptProtocol.hand_over; it hands over only what the next worker can go on with */
    if
    :: atomic { ALIVE && written[c] >= r_written[LAST(N)] &&
                written[c] <= r_written[LAST(N)] + r_whole[LAST(N)] &&
                r_taken[LAST(N)] != UNKNOWN && CAN_SEND(w) &&
                (r_request[LAST(N)] != 0 || r_whole[LAST(N)] == 0 || r_text[LAST(N)] == 2 ||
                 written[c] == r_written[LAST(N)] + r_whole[LAST(N)]) &&
                (taken[c] == r_taken[LAST(N)] ||
                 taken[c] == r_taken[LAST(N)] + r_request[LAST(N)]) ->
#ifdef BUG_CONNECTION_IS_NOT_SENT_AGAIN
                send(w, HAND_OVER, place[HANDS(w, c)], NONE);
#else
                refs[c]++; send(w, HAND_OVER, place[HANDS(w, c)], c);
#endif
                place[HANDS(w, c)] = NONE;
#ifndef BUG_WRITES_AFTER_HAND_OVER
                touches[c] = NONE
#endif
              }
#ifdef BUG_WRITES_AFTER_HAND_OVER
        if
        :: request == 2 && at < 2 && (sent + at) == written[c] -> put(sent / 2, at)
        :: else
        fi;
#endif
        STEP(holds[HANDS(w, c)] = false; unref(c));           /* it closes its descriptor */
        goto over
    :: atomic { ALIVE && !(written[c] >= r_written[LAST(N)] &&
                written[c] <= r_written[LAST(N)] + r_whole[LAST(N)] &&
                r_taken[LAST(N)] != UNKNOWN &&
                (r_request[LAST(N)] != 0 || r_whole[LAST(N)] == 0 || r_text[LAST(N)] == 2 ||
                 written[c] == r_written[LAST(N)] + r_whole[LAST(N)]) &&
                (taken[c] == r_taken[LAST(N)] ||
                 taken[c] == r_taken[LAST(N)] + r_request[LAST(N)])) ->
                assert(excused[c]) }    /* its client may finish, or is cut after `grace` */
        goto close
    :: DIES
    fi;

close:   /* connection_lost */
    STEP(shut[c] = true);
    if
    :: atomic { ALIVE && IS_KEPT ->
#ifndef BUG_CLOSED_IS_NOT_TOLD
                closed[N] = true;
#endif
                place[HANDS(w, c)] = NONE }
    :: atomic { ALIVE && !IS_KEPT }
    :: DIES
    fi;
    STEP(touches[c] = NONE; holds[HANDS(w, c)] = false; unref(c));

over:
    atomic { sent = 0; got = 0; request = 0; at = 0; had = 0; midway = false }
    goto end;

gone:
    atomic { sent = 0; got = 0; request = 0; at = 0; had = 0; midway = false }
}

proctype Hear(byte w) {
    byte kind, i, c;
end:
    do
    :: atomic { ALIVE && nempty(waiting[w]) && nfull(up[w]) ->           /* Channel.flush */
                waiting[w]?kind, i, c; up[w]!kind, i, c; was_sent(w, kind, i, c);
                kind = 0; i = 0; c = 0 }
    :: atomic { ALIVE && closed[RECORD(w, 0)] && CAN_SEND(w) ->          /* Kept._tell_closed */
                closed[RECORD(w, 0)] = false; send(w, CLOSED, 0, 0) }
    :: atomic { ALIVE && closed[RECORD(w, 1)] && CAN_SEND(w) ->
                closed[RECORD(w, 1)] = false; send(w, CLOSED, 1, 0) }
    :: atomic { ALIVE && nempty(down[w]) && (!used[RECORD(w, 0)] || !used[RECORD(w, 1)]) ->
                down[w]?kind, c;
                if :: kind == ADOPT -> holds[HANDS(w, c)] = true :: else fi }
        if
        :: kind == LEAVE -> STEP(leaving[w] = true)
        :: kind == ADOPT ->        /* Kept._take_over */
            atomic {
                if
                :: ALIVE ->
                    if
                    :: !used[RECORD(w, 0)] -> i = 0
                    :: used[RECORD(w, 0)] -> i = 1
                    fi;
                    used[RECORD(w, i)] = true;
                    owner[RECORD(w, i)] = c;
                    place[HANDS(w, c)] = i
                :: DIES
                fi
            }
#define FREE NEXT(RECORD(w, i))
            STEP(r_written[FREE] = l_written[c]; r_taken[FREE] = l_taken[c];
                 r_request[FREE] = l_request[c]; r_whole[FREE] = l_whole[c];
                 r_text[FREE] = l_text[c]; r_of[FREE] = l_of[c]);
            STEP(turn[RECORD(w, i)] = 1 - turn[RECORD(w, i)]);
            if
            :: atomic { ALIVE && CAN_SEND(w) -> send(w, ADOPTED, i, c) }
            :: DIES
            fi
        fi;
        atomic { kind = 0; i = 0; c = 0 }
    :: DIES
    od;
gone:
    atomic { kind = 0; i = 0; c = 0 }
}

/* The keeper. */

inline let_go(c) {                 /* it closes its duplicate */
    kept[c] = false;
    unref(c)
}

#if CLIENTS > 1
#define COUNT (kept[0] + kept[1])
#else
#define COUNT kept[0]
#endif

inline keep(n, c) {
    kept[c] = false;
    if
    :: COUNT < MOST -> kept[c] = true; unkept[c] = false; clients[n] = c
    :: else ->
        unkept[c] = true;
        if :: dead[w] -> excused[c] = true :: else fi;
        unref(c)
    fi
}

inline copy(n, c) {
    assert(owner[n] == c);                                    /* K3 */
    l_written[c] = r_written[LAST(n)]; l_taken[c] = r_taken[LAST(n)];
    l_request[c] = r_request[LAST(n)]; l_whole[c] = r_whole[LAST(n)];
    l_text[c] = r_text[LAST(n)]; l_of[c] = r_of[LAST(n)];
    homeless[c] = true
}

inline hear() {                    /* Keeper._hear, of the worker `w` */
    up[w]?kind, i, c;
    n = RECORD(w, i);
    if
    :: kind == CLOSED && clients[n] != NONE -> let_go(clients[n]); clients[n] = NONE
    :: kind == CLOSED && clients[n] == NONE
    :: kind == ADOPTED && coming[c] == w -> coming[c] = NONE; keep(n, c)
    :: kind == ADOPTED && coming[c] != w -> assert(false)
    :: kind == HAND_OVER && clients[n] == NONE && c == NONE   /* it is lost */
    :: kind == HAND_OVER && clients[n] == NONE && c != NONE -> kept[c] = true; copy(n, c)
    :: kind == HAND_OVER && clients[n] != NONE ->
        if :: c != NONE -> unref(c) :: else fi;
        copy(n, clients[n]);
        clients[n] = NONE
    fi;
    kind = 0; i = 0; c = 0; n = 0
}

inline lose(queue) {               /* messages that nobody hears, and their descriptors */
    do
    :: nempty(queue) ->
        queue?kind, i, c;
        if
        :: kind == HAND_OVER && c != NONE ->
            if :: unkept[c] -> excused[c] = true :: else fi;
            unref(c)
        :: else
        fi
    :: empty(queue) -> break
    od;
    kind = 0; i = 0; c = 0
}

inline adopt(c) {
    homeless[c] = false;
    coming[c] = w;
    if
    :: !dead[w] -> refs[c]++; down[w]!ADOPT, c
    :: dead[w]                     /* the keeper does not know that yet: nobody gets the message */
    fi
}

/* Keeper._take_back: the keeper receives it, and not the worker. */
#ifdef BUG_TAKES_BACK_WHAT_WAS_RECEIVED
#define MAY_TAKE_BACK(c) (BACK && !dead[w] && coming[c] == w)
#else
#define MAY_TAKE_BACK(c) (BACK && !dead[w] && down[w]??[ADOPT, c])
#endif

inline take_back(c) {
#ifndef BUG_TAKES_BACK_WHAT_WAS_RECEIVED
    down[w]??ADOPT, c;
    unref(c);
    assert(coming[c] == w);
#endif
    coming[c] = NONE;
    homeless[c] = true
}

inline accept(c) {                 /* Keeper._accept */
    accepted[c] = true; refs[c]++; kept[c] = true;
    adopt(c)
}

#if WORKERS == 2
#define ARE_READY (ready[0] + ready[1])
#elif WORKERS == 3
#define ARE_READY (ready[0] + ready[1] + ready[2])
#else
#define ARE_READY (ready[0] + ready[1] + ready[2] + ready[3])
#endif

proctype Keeper(byte w) {          /* what it does with one worker */
    byte kind, i, c, n;
end:
    do
    :: atomic { nempty(up[w]) && !buried[w] -> hear() }
    :: atomic {                    /* Keeper.ended */
            dead[w] && !buried[w] ->
#ifdef BUG_LAST_WORDS_ARE_NOT_HEARD
            lose(up[w]);
#endif
#ifdef BUG_RESET_IS_THE_END
            if :: reset[w] -> lose(up[w]) :: else fi;
#endif
            do :: nempty(up[w]) -> hear() :: empty(up[w]) -> break od;
            ready[w] = false; buried[w] = true; starts++;
            n = RECORD(w, 0);
            do
            :: n < RECORD(w, RECORDS) ->
                if :: clients[n] != NONE -> copy(n, clients[n]); clients[n] = NONE :: else fi;
                n++
            :: else -> break
            od;
            n = 0;
            do
            :: c < CLIENTS ->
                if :: coming[c] == w -> coming[c] = NONE; homeless[c] = true :: else fi;
                c++
            :: else -> break
            od;
            c = 0
        }
    :: atomic { starts > 0 && next == w -> starts--; ready[w] = true; next++ }
    :: atomic { MAY_ACCEPT(0) -> accept(0) }
    :: atomic { homeless[0] && ready[w] && nfull(down[w]) -> adopt(0) }
#if CLIENTS > 1
    :: atomic { MAY_ACCEPT(1) -> accept(1) }
    :: atomic { homeless[1] && ready[w] && nfull(down[w]) -> adopt(1) }
#endif
    :: atomic { MAY_TAKE_BACK(0) -> take_back(0) }
#if CLIENTS > 1
    :: atomic { MAY_TAKE_BACK(1) -> take_back(1) }
#endif
    :: atomic { leaves > 0 && ready[w] && ARE_READY > 1 && nfull(down[w]) ->
                leaves--; ready[w] = false; down[w]!LEAVE, NONE }        /* Keeper.leave */
    od
}

/* What may happen at any time. */

proctype Client(byte c) {
    do
    :: atomic { !left[c] && !cut[c] && come[c] == 0 -> come[c] = ALL }   /* in a row */
    :: atomic { !left[c] && !cut[c] && come[c] % 2 == 0 && come[c] < ALL -> come[c] = come[c] + 2 }
    :: atomic { PIECES && !left[c] && !cut[c] && come[c] < ALL -> come[c]++ }
    :: atomic { come[c] == ALL && written[c] == ALL -> left[c] = true; break }
    :: atomic { QUITS && accepted[c] -> left[c] = true; break }
    :: atomic { cut[c] -> left[c] = true; break }
    od
}

#define IS_FREE(w) (!holds[HANDS(w, 0)] && !holds[HANDS(w, CLIENTS - 1)] && empty(waiting[w]) \
                    && empty(down[w]))

inline end_it() {                  /* the kernel closes all descriptors of the worker */
    dead[w] = true;
    closed[RECORD(w, 0)] = false;
    closed[RECORD(w, 1)] = false;
    reset[w] = nempty(down[w]);
    do
    :: c < CLIENTS ->
        if :: holds[HANDS(w, c)] && unkept[c] -> excused[c] = true :: else fi;
        if :: touches[c] == w -> touches[c] = NONE :: else fi;
        c++
    :: else -> break
    od;
    c = 0;
    lose(waiting[w]);
    do
    :: nempty(down[w]) ->
        down[w]?kind, c;
        if :: kind == ADOPT -> unref(c) :: else fi
    :: empty(down[w]) -> break
    od;
    kind = 0;
    c = 0;
    do
    :: c < CLIENTS ->
        if
        :: holds[HANDS(w, c)] -> holds[HANDS(w, c)] = false; unref(c)
        :: else
        fi;
        c++
    :: else -> break
    od;
    c = 0
}

proctype End(byte w) {             /* of a worker */
    byte kind, i, c;
end:
    if
    :: atomic { leaving[w] && !dead[w] && IS_FREE(w) -> end_it() }
    :: atomic { kills > 0 && !dead[w] && w < next -> kills--; end_it() }
    fi
}

proctype Calm() {                  /* no more workers are killed, or replaced */
end:
    do
    :: atomic { kills > 0 -> kills = 0 }
    :: atomic { leaves > 0 -> leaves = 0 }
    od
}

proctype Last() {
    byte k;
    timeout ->
    atomic {
        do
        :: k < CLIENTS ->
            assert(left[k] && refs[k] == 0);                  /* nothing is kept of a client that left */
            assert(!kept[k] && !homeless[k] && coming[k] == NONE && touches[k] == NONE);
            k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < SIZE_OF_ALL -> assert(clients[k] == NONE && (!used[k] || dead[k / RECORDS])); k++
        :: else -> break
        od
    }
}

init {
    atomic {
        byte k = 0;
        do
        :: k < WORKERS * CLIENTS -> place[k] = NONE; k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < SIZE_OF_ALL -> clients[k] = NONE; owner[k] = NONE; k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < CLIENTS -> coming[k] = NONE; touches[k] = NONE; run Client(k); k++
        :: else -> break
        od;
        ready[0] = true; ready[1] = true;
#if BEGUN == 2
        accepted[0] = true; kept[0] = true; homeless[0] = true; refs[0] = 1;
        dead[0] = true; buried[0] = true; ready[0] = false; starts = 1;
#endif
#if BEGUN == 1
        accepted[0] = true; touches[0] = 0; holds[HANDS(0, 0)] = true;
        refs[0] = 1;
        place[HANDS(0, 0)] = 0; used[0] = true; owner[0] = 0;
        if :: MOST > 0 -> clients[0] = 0; kept[0] = true; refs[0]++ :: else -> unkept[0] = true fi;
#endif
        k = 0;
        do
        :: k < WORKERS ->
            run Hand(k, 0);
#if CLIENTS > 1
            run Hand(k, 1);
#endif
            run Hear(k); run Keeper(k); run End(k); k++
        :: else -> break
        od;
        run Calm(); run Last();
        k = 0
    }
}
