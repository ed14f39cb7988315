/* The life of one stream, for spin: publish, wait, subscribe, unsubscribe, succeed, commit, abort,
 * hand over, reap. Not in it: how the name and the partial file of a new stream are claimed.
 *
 * Each load and each store of shared memory is a step of its own, in the order of the code, and so
 * is each call of the kernel that another process can notice. A process may be killed between any
 * two steps; then the kernel frees its locks one by one, in any order.
 *
 *     process    threads                                        code
 *     0          Leader 0, which has just created the stream    stream/resumable_writer.py, writer.py
 *     1, 2       a Reader; and the Leader that succeeds, if     stream/waiter.py, subscribers.py,
 *                this process is the fastest                    flight/flight.py, stream/stream.py
 *     3          Sweeper                                        stream/claims.py
 *
 * Beside them, Killer kills, Kernel frees the locks of the dead, Last comes when all others have
 * gone, and Watch asserts what holds at any time.
 *
 * A byte of the model is a chunk of the blob. Left out are words that no process loads to decide
 * anything (`chunk_count`, `progress`, `position`, the identities of processes), and time: a wait
 * may end at any moment. All processes see loads and stores in the order of the program.
 *
 * The bounds are macros, and so are the deliberate bugs, BUG_...; tools/models/bounds.py uses them.
 */

#ifndef SIZE
#define SIZE 2                     /* chunks of the blob */
#endif
#ifndef READERS
#define READERS 2
#endif
#ifndef LEADERS
#define LEADERS 2                  /* successive writers */
#endif
#ifndef KILLS
#define KILLS 1                    /* processes that are killed */
#endif
#ifndef VISITS
#define VISITS 1                   /* how often a reader comes */
#endif
#ifndef QUITS
#define QUITS 0                    /* 1: a reader may leave before the end */
#endif
#ifndef SWEEPS
#define SWEEPS 0                   /* sweeps while others are alive; one more follows at the end */
#endif
#ifndef KEPT
#define KEPT 0                     /* chunks that an earlier download has left in the partial file */
#endif
#ifndef GIVEN
#define GIVEN 1                    /* 1: the digest is given, so the last chunk is withheld */
#endif
#ifndef HANDS_OVER
#define HANDS_OVER 1               /* 1: the process of a writer may end before the blob */
#endif
#ifndef JOINED
#define JOINED 0                   /* 1: the readers have a slot from the start */
#endif
#ifndef LEAVING
#define LEAVING 1                  /* 0: leaving, and closing what has ended, is one step */
#endif
#ifndef VICTIMS
#define VICTIMS 15                 /* the processes that may be killed, one bit each */
#endif
#ifndef ABORTS
#define ABORTS 1                   /* 1: a source may fail, so that the stream is aborted */
#endif
#ifndef GREEDY
#define GREEDY 2                   /* this reader wants all bytes at once; the other takes any */
#endif
#ifndef LATE
#define LATE 2                     /* this reader subscribes only when it has to wait */
#endif

#define NONE 15
#define TORN 14                    /* the identity of a file of which not all words are stored yet */
#define MANY 9                     /* more than there will be */
#define GENERATIONS 8

#define OPENING 0
#define STREAMING 1
#define COMMITTED 2
#define ABORTED 3
#define TERMINAL(s) ((s) >= COMMITTED)

/* The control block. */
byte state = OPENING;
byte published = 0;
bool size_known = false;
bool error_stored = false;
byte file = 0;                     /* the identity of the partial file */
byte word[2];                      /* the memberships: generation << 1 | active */

/* What the kernel keeps. A lock has the number of the process that holds it, or NONE. */
byte life = 0;                     /* the lock on the header but for byte 0: only writers take it */
byte byte_0 = 0;                   /* the lock on byte 0: writers and reapers take it */
byte file_lock[2];
byte slot_lock[2];
bool named = true;                 /* whether the segment has its name */
byte at_partial = 0;               /* the file at the partial path */
byte at_final = NONE;              /* the file at the final path */
byte length[2];                    /* of each file */
short bells = 0;                   /* the names of doorbells that exist, one bit each */
byte bell[4];                      /* of each reader: the doorbell that it has open */
byte posts[4];                     /* and how often that is posted */

/* What only the model knows. */
byte leads[LEADERS];               /* the process of each leader */
byte leaders = 1;                  /* how many there have been */
byte leading = 0;                  /* the process that may store to the header and the file */
bool over[LEADERS];                /* that leader has ended */
bool left[4];                      /* the reader, or the sweeper, of that process has ended */
bool dead[5];                      /* that process was killed */
byte kills = KILLS;
bool verified = false;             /* all bytes are those that the digest names */
bool ringing[5];                   /* that process has stored news, and not rung for all of it */
bool missed = false;               /* a process was killed while it was ringing */
bool handed = false;               /* handed over, and not taken over yet */
bool asleep[4];
byte wanted[4];                    /* so many bytes the sleeping reader waits for */

#define BELL(slot, generation) ((slot) * GENERATIONS + (generation))
#define EXISTS(b) ((bells >> (b)) & 1)
/* The doorbells that the memberships name, which are all that its readers may have left. */
#define NAMED_BELL(slot) (word[slot] -> 1 << BELL(slot, word[slot] >> 1) : 0)
#define NAMED_BELLS (bells & (NAMED_BELL(0) | NAMED_BELL(1)))
#define UNLINK(b) bells = bells & ~(1 << (b))
#define IS_READ (slot_lock[0] != NONE || slot_lock[1] != NONE)

/* A step of the process `me`. A killed process takes no more steps. */
#define ALIVE !dead[me]
#define DIES dead[me] -> goto gone
#define STEP(what) if :: atomic { ALIVE -> what } :: DIES fi

/* Stores of the writer. */

#define IS_LEADER assert(leading == me && life == me && named)          /* never two leaders */

inline store_published(value) {
    IS_LEADER;
    assert(!TERMINAL(state));                                 /* I3: it is final before the end */
    assert(published <= value && value <= SIZE);              /* I1 */
    assert(value <= length[file]);                            /* I2: the bytes are in the file */
    assert(!GIVEN || value < SIZE || (verified && at_final == file));               /* I5 */
    if :: published < value -> ringing[me] = true :: else fi;
    published = value
}

inline store_state(value) {
    IS_LEADER;
    assert(!TERMINAL(state) && state < value);
    assert(value != COMMITTED || (size_known && published == SIZE));                /* I3 */
    assert(value != COMMITTED || at_final == file);                                 /* I5 */
    assert(value != ABORTED || error_stored);                                       /* I3 */
    if :: TERMINAL(value) -> ringing[me] = true :: else fi;
    state = value
}

/* Doorbells. */

inline post(b) {                   /* never waits (I6); at its limit a post has no effect (I4) */
    if
    :: bell[1] == b && posts[1] < 2 -> posts[1]++
    :: bell[2] == b && posts[2] < 2 -> posts[2]++
    :: else                        /* no reader has that doorbell open any more */
    fi
}

inline unlink_one() {              /* of `list` */
    i = 0;
    do :: !((list >> i) & 1) -> i++ :: else -> break od;
    list = list & ~(1 << i);
    UNLINK(i);
    i = 0
}

inline unlink_listed() {
    do
    :: list == 0 -> break
    :: list != 0 -> STEP(unlink_one())
    od
}

/* Subscribers._follow, for one slot: open the doorbell of a new reader by its name. */
inline follow(s) {
    if
    :: ringer[s] != NONE && (!(now[s] & 1) || ringer[s] != BELL(s, now[s] >> 1)) -> ringer[s] = NONE
    :: else
    fi;
    if
    :: (now[s] & 1) && ringer[s] == NONE ->
        STEP(if
             :: EXISTS(BELL(s, now[s] >> 1)) -> ringer[s] = BELL(s, now[s] >> 1); came[s] = true
             :: else               /* it is gone: its reader looks by itself (I4) */
             fi)
    :: else
    fi
}

/* Subscribers.ring: post the open doorbells; if the memberships have changed, follow them. */
inline ring() {
    if :: ringer[0] != NONE -> STEP(post(ringer[0])) :: else fi;
    if :: ringer[1] != NONE -> STEP(post(ringer[1])) :: else fi;
    STEP(now[0] = word[0]);
    STEP(now[1] = word[1]);
    if
    :: now[0] != seen[0] || now[1] != seen[1] ->
        atomic { seen[0] = now[0]; seen[1] = now[1] }
        STEP(now[0] = word[0]);    /* Block.taken */
        STEP(now[1] = word[1]);
        follow(0);
        follow(1);
        if :: came[0] -> STEP(post(ringer[0])) :: else fi;
        if :: came[1] -> STEP(post(ringer[1])) :: else fi;
        atomic { came[0] = false; came[1] = false }
    :: else
    fi;
    STEP(now[0] = 0; now[1] = 0; ringing[me] = false;
         if :: leading == me -> missed = false :: else fi)
}

/* subscribers.reclaim: free the slot of a killed reader. */
inline reclaim(s) {
    STEP(now[s] = word[s]);
    if
    :: now[s] & 1 ->
        STEP(UNLINK(BELL(s, now[s] >> 1)));
        STEP(word[s] = now[s] & 254)
    :: else
    fi;
    STEP(slot_lock[s] = NONE; now[s] = 0)
}

/* claims.reap with `is_read`. Any process may reap at any time. */
inline reap() {
    if
#ifdef BUG_REAPER_IGNORES_THE_LOCK
    :: atomic { ALIVE && named -> byte_0 = me }
        do
#else
    :: atomic { ALIVE && named && byte_0 == NONE -> byte_0 = me }
        do
#endif
        :: atomic { ALIVE && !named -> byte_0 = NONE } break  /* another reaper was faster */
        :: atomic { ALIVE && named && IS_READ }
            STEP(byte_0 = NONE);
#ifdef BUG_REAPER_DOES_NOT_LOOK_AGAIN
            break
#else
            if
            :: atomic { ALIVE && !IS_READ && named && byte_0 == NONE -> byte_0 = me }
            :: atomic { ALIVE && (IS_READ || !named || byte_0 != NONE) } break
            :: DIES
            fi
#endif
        :: atomic { ALIVE && named && !IS_READ -> list = NAMED_BELLS }
            unlink_listed();
            STEP(assert(life == NONE); named = false);        /* I8: nothing alive is removed */
            STEP(byte_0 = NONE);
            break
        :: DIES
        od
    :: atomic { ALIVE && (!named || byte_0 != NONE) }
    :: DIES
    fi
}

/* The writer. */

/* BlobStreamer._publishable: with a digest, all but the last chunk (I5). */
#ifdef BUG_LAST_CHUNK_NOT_WITHHELD
#define PUBLISHABLE end
#else
#define PUBLISHABLE (GIVEN && end == SIZE && published < SIZE -> SIZE - 1 : end)
#endif

/* Where the leader goes on when it has rung. */
#define TO_STREAM 0
#define TO_HAND_OVER 1
#define TO_REAP 2
#define TO_CLOSE 3

proctype Leader(byte k) {
    byte me, mine, end, next, i, ringer[2], seen[2], now[2];
    bool came[2], opening, spoilt;
    short list;
end_absent:
    atomic {
        leads[k] != NONE;
        me = leads[k]; mine = file; end = published; opening = (state == OPENING);
        ringer[0] = NONE; ringer[1] = NONE
    }
    if
    :: !opening ->                 /* ResumableStreamer.succeed: the file keeps all its bytes */
#ifndef BUG_SUCCESSOR_COUNTS_FROM_PUBLISHED
        STEP(end = length[mine]);
#endif
        goto publish
    :: else -> opening = false
    fi;

    /* Leader._begin: keep the bytes of an earlier download, or begin with an empty file. */
    if
    :: atomic { ALIVE && length[mine] > 0 -> end = length[mine] }       /* the journal vouches */
    :: atomic { ALIVE && length[mine] > 0 -> file_lock[1] = me; at_partial = 1 }
        STEP(IS_LEADER; file = TORN);
        STEP(IS_LEADER; file = 1);
        STEP(file_lock[mine] = NONE; mine = 1)
    :: atomic { ALIVE && length[mine] == 0 }
    :: DIES
    fi;
    if                             /* ResumableStreamer.resume */
    :: end > 0 && PUBLISHABLE > 0 ->
        STEP(store_published(PUBLISHABLE));
        STEP(store_state(STREAMING));
        goto publish
    :: else ->
        STEP(store_state(STREAMING))
    fi;

stream:
    if
    :: atomic {
            ALIVE && end < SIZE ->
            IS_LEADER;
            assert(file_lock[mine] == me && length[mine] == end && end >= published);       /* I2 */
            end++;
            length[mine] = end
        }
        goto stream
    :: PUBLISHABLE > published -> goto publish                /* both are the leader's own */
#ifdef BUG_PUBLISHES_BEFORE_IT_WRITES
    :: end < SIZE -> end++; STEP(store_published(end)); end--; goto call
#endif
    :: atomic { ALIVE && ringer[0] != NONE && slot_lock[0] == NONE -> slot_lock[0] = me }
        reclaim(0);                /* Subscribers.look_after_one, if it is time */
        goto stream
    :: atomic { ALIVE && ringer[1] != NONE && slot_lock[1] == NONE -> slot_lock[1] = me }
        reclaim(1);
        goto stream
    :: end == SIZE -> goto commit
    :: GIVEN && end == SIZE -> spoilt = true; goto abort      /* the bytes have another digest */
    :: ABORTS -> goto abort                                   /* no source goes on */
    :: atomic { HANDS_OVER && ALIVE && IS_READ -> next = TO_HAND_OVER } goto publish
    :: atomic { HANDS_OVER && ALIVE && !IS_READ } goto close  /* the process ends */
    :: DIES
    fi;

publish:   /* BlobStreamer._publish */
#ifdef BUG_RINGS_BEFORE_IT_PUBLISHES
    ring();
    STEP(store_published(PUBLISHABLE); ringing[me] = false);
    goto stream;
#endif
    STEP(store_published(PUBLISHABLE));
call:
    ring();
    if
    :: next == TO_STREAM -> goto stream
    :: next == TO_HAND_OVER -> goto hand_over
    :: next == TO_CLOSE -> goto close
    :: next == TO_REAP ->          /* the last reader may have left while this leader led */
#ifndef BUG_NO_REAP_AFTER_HANDOVER
        reap();
#endif
        goto gone
    fi;

hand_over:   /* ResumableStreamer.close with readers */
    STEP(file_lock[mine] = NONE);
    STEP(IS_LEADER; leading = NONE; life = NONE; byte_0 = NONE; handed = true; ringing[me] = true);
    next = TO_REAP;
    goto call;

commit:   /* BlobStreamer.commit */
    STEP(verified = true);
#ifdef BUG_PUBLISHES_ALL_BEFORE_IT_MOVES
    STEP(store_published(SIZE));
#endif
    STEP(IS_LEADER; assert(at_partial == mine); at_final = mine; at_partial = NONE);
    STEP(size_known = true);
#ifdef BUG_COMMITTED_BEFORE_PUBLISHED
    STEP(store_state(COMMITTED));
    STEP(store_published(SIZE));
#else
    STEP(store_published(SIZE));
    STEP(store_state(COMMITTED));
#endif
    next = TO_CLOSE;
    goto call;

abort:   /* BlobStreamer.abort; it unlinks a spoilt file after the rings, here before `close` */
#ifdef BUG_ABORTED_BEFORE_ERROR
    STEP(store_state(ABORTED));
    STEP(error_stored = true);
#else
    STEP(error_stored = true);
    STEP(store_state(ABORTED));
#endif
    next = TO_CLOSE;
    goto call;

close:   /* BlobStreamer._end: the doorbells, the name, the lock */
    STEP(if :: spoilt && at_partial == mine -> at_partial = NONE :: else fi);
#if LEAVING
    STEP(file_lock[mine] = NONE);
    STEP(list = NAMED_BELLS);
    unlink_listed();
    STEP(IS_LEADER; named = false);
    STEP(leading = NONE; life = NONE; byte_0 = NONE);
#else
    STEP(IS_LEADER; file_lock[mine] = NONE; bells = bells & ~NAMED_BELLS; named = false;
         leading = NONE; life = NONE; byte_0 = NONE);
#endif
gone:
    atomic {
        over[k] = true;
        mine = 0; end = 0; next = 0; i = 0; list = 0; opening = false; spoilt = false;
        ringer[0] = 0; ringer[1] = 0; seen[0] = 0; seen[1] = 0; now[0] = 0; now[1] = 0;
        came[0] = false; came[1] = false
    }
}

/* Readers. */

inline subscribe() {
    if
    :: atomic { ALIVE && TERMINAL(state) }
    :: atomic { ALIVE && !TERMINAL(state) }
        if                         /* _claim: a free slot first, then the slot of a dead reader */
        :: atomic { ALIVE && slot_lock[0] == NONE && !(word[0] & 1) -> slot_lock[0] = me; s = 0 }
        :: atomic { ALIVE && slot_lock[1] == NONE && !(word[1] & 1) -> slot_lock[1] = me; s = 1 }
        :: atomic { ALIVE && slot_lock[0] == NONE && (word[0] & 1) -> slot_lock[0] = me; s = 0 }
        :: atomic { ALIVE && slot_lock[1] == NONE && (word[1] & 1) -> slot_lock[1] = me; s = 1 }
        :: DIES
        fi;
        STEP(got = word[s]);
        if :: got -> STEP(UNLINK(BELL(s, got >> 1))) :: else fi;
#ifdef BUG_DOORBELL_AFTER_MEMBERSHIP
        STEP(got = (got >> 1) % (GENERATIONS - 1) + 1; word[s] = got << 1 | 1);
        STEP(bell[me] = BELL(s, got); bells = bells | (1 << bell[me]); posts[me] = 0; got = 0)
#else
        STEP(got = (got >> 1) % (GENERATIONS - 1) + 1; word[s] = got << 1);
        STEP(bell[me] = BELL(s, got); bells = bells | (1 << bell[me]); posts[me] = 0);
        STEP(word[s] = got << 1 | 1; got = 0)
#endif
    :: DIES
    fi
}

inline unsubscribe() {
    STEP(word[s] = word[s] & 254);
    STEP(UNLINK(bell[me]); bell[me] = NONE; posts[me] = 0);
    STEP(slot_lock[s] = NONE; s = NONE)
}

#ifdef BUG_SUCCESSOR_IGNORES_THE_LOCK
#define LOOKS_ORPHANED true
#define CAN_LOCK true
#else
#define LOOKS_ORPHANED life == NONE
#define CAN_LOCK (life == NONE && byte_0 == NONE)
#endif

/* Flight._succeed and Stream.succeed */
inline succeed() {
    if
    :: atomic { ALIVE && leaders < LEADERS && CAN_LOCK -> life = me; byte_0 = me; handed = false }
        if
#ifdef BUG_SUCCESSOR_DOES_NOT_LOOK_AGAIN
        :: atomic { ALIVE -> assert(leading == NONE); leading = me; fd = at_partial }
#else
        :: atomic { ALIVE && (TERMINAL(state) || !named) -> life = NONE; byte_0 = NONE }
        :: atomic { ALIVE && !TERMINAL(state) && named ->
                    assert(leading == NONE); leading = me; fd = at_partial }
#endif
            if
            :: atomic { ALIVE && (fd == NONE || fd != file || length[fd] < published) ->
                        IS_LEADER; named = false }            /* the bytes are gone */
                STEP(leading = NONE; life = NONE; byte_0 = NONE)
            :: atomic { ALIVE && fd != NONE && fd == file && length[fd] >= published }
                if
                :: atomic { ALIVE && file_lock[fd] == NONE -> file_lock[fd] = me }
                    STEP(if
                         :: state == OPENING && published > 0 -> store_state(STREAMING)
                         :: else
                         fi);
                    STEP(leads[leaders] = me; leaders++)
                :: atomic { ALIVE && file_lock[fd] != NONE ->
                            leading = NONE; life = NONE; byte_0 = NONE }
                :: DIES
                fi
            :: DIES
            fi
        :: DIES
        fi
    :: atomic { ALIVE && !(leaders < LEADERS && CAN_LOCK) }
    :: DIES
    fi
}

#define WANT (me == GREEDY -> MANY : at + 1)

proctype Reader(byte me) {
    byte at, s, seen, got, fd, i, visits;
    bool must, many;
    short list;
    atomic { s = NONE; fd = NONE; visits = VISITS; must = true }
#if JOINED
    s = me - 1;
    goto read;
#endif

join:   /* Flight.join */
    if
    :: atomic { ALIVE && at_final != NONE ->                  /* stored: read the rest from there */
                assert(verified && length[at_final] == SIZE); at = SIZE; fd = NONE }
        goto leave
    :: atomic { ALIVE && at_final == NONE }
    :: DIES
    fi;
    if
    :: atomic { ALIVE && !named } goto leave                  /* it would begin a new stream */
    :: atomic { ALIVE && named }
    :: DIES
    fi;
    STEP(fd = at_partial);         /* Stream.open_file */
    if
    :: atomic { ALIVE && fd != NONE && fd == file }
    :: atomic { ALIVE && (fd == NONE || fd != file) }
        STEP(fd = at_final);
        if
        :: atomic { ALIVE && fd != NONE && fd == file }
        :: atomic { ALIVE && (fd == NONE || fd != file) -> fd = NONE }
            if
            :: atomic { ALIVE && life == NONE } goto leave
            :: atomic { ALIVE && life != NONE } goto join
            :: DIES
            fi
        :: DIES
        fi
    :: DIES
    fi;
    if
    :: atomic { ALIVE && state == ABORTED } goto leave
    :: atomic { ALIVE && state != ABORTED }
    :: DIES
    fi;
    if :: s == NONE && me != LATE -> subscribe() :: else fi;
    if
    :: atomic { ALIVE && LOOKS_ORPHANED }
        if
        :: atomic { ALIVE && !TERMINAL(state) } succeed()
        :: atomic { ALIVE && TERMINAL(state) }
        :: DIES
        fi
    :: atomic { ALIVE && !(LOOKS_ORPHANED) }
    :: DIES
    fi;

read:   /* Tail.readable */
    if
    :: QUITS -> goto leave         /* a user may leave at any time */
    :: true
    fi;
    STEP(got = published);
    if :: got >= WANT -> goto take :: else -> seen = got; got = 0 fi;
    if
    :: s == NONE -> subscribe();
        if :: s == NONE -> goto conclude :: else fi;
#ifndef BUG_NO_LOOK_AFTER_SUBSCRIBING
        STEP(got = published);
        if :: got >= WANT -> goto take :: else -> seen = got; got = 0 fi
#endif
    :: else
    fi;

wait:
    if
    :: atomic { ALIVE && TERMINAL(state) } goto conclude
    :: atomic { ALIVE && !TERMINAL(state) }
    :: DIES
    fi;
    if
    :: atomic { ALIVE && life == NONE } goto conclude
    :: atomic { ALIVE && life != NONE -> must = false }
    :: !must                       /* it is not time to look at the lock */
    :: DIES
    fi;
#ifdef BUG_FORGETS_RINGS_BEFORE_IT_SLEEPS
    STEP(posts[me] = 0);
#endif
    STEP(asleep[me] = true; wanted[me] = WANT);
    if                             /* all rings that have come, or one for which it slept */
    :: atomic { ALIVE && posts[me] > 0 ->
                posts[me]--; must = true; many = false; asleep[me] = false; wanted[me] = 0 }
#ifdef BUG_LOADS_BEFORE_ALL_RINGS_ARE_TAKEN
        STEP(got = published);
#endif
#ifdef BUG_NO_LOOK_AFTER_MANY_RINGS
        STEP(posts[me] = 0);
#else
        if
        :: STEP(many = posts[me] > 0; posts[me] = 0)
        :: true
        fi;
#endif
    :: atomic { ALIVE -> asleep[me] = false; wanted[me] = 0 } /* a quarter of a second is over */
    :: DIES
    fi;
#ifdef BUG_LOADS_BEFORE_ALL_RINGS_ARE_TAKEN
    STEP(must = must && (many || got == seen); many = false);
#else
    STEP(got = published; must = must && (many || got == seen); many = false);
#endif
    if :: got >= WANT -> goto take :: else -> seen = got; got = 0; goto wait fi;

conclude:   /* Tail._conclude: the state, then `published` */
    if
#ifdef BUG_PUBLISHED_NOT_LOADED_AGAIN
    :: atomic { ALIVE && state == COMMITTED -> got = seen }
#else
    :: atomic { ALIVE && state == COMMITTED }
        STEP(got = published);
#endif
        if :: got > at -> goto take :: else fi;
        STEP(assert(at == SIZE && state == COMMITTED));       /* I7 */
        goto leave
    :: atomic { ALIVE && state == ABORTED }
        STEP(got = published);
        if :: got > at -> goto take :: else fi;
        STEP(assert(error_stored));                           /* I3 */
        goto leave
    :: atomic { ALIVE && !TERMINAL(state) }
        STEP(got = published);
        if :: got > at -> goto take :: else fi
    :: DIES
    fi;
    /* WriterDied: join again, and go on at the same position */
    atomic { got = 0; seen = 0; must = true }
    if
    :: atomic { ALIVE && leaders < LEADERS } goto join
    :: atomic { ALIVE && leaders == LEADERS } goto leave
    :: DIES
    fi;

take:
    seen = 0;
    STEP(fd = file;                /* _settle: it does not change any more */
         assert(got <= published);                            /* nothing past `published` is read */
         assert(got <= length[fd]);                           /* I2 */
         assert(!GIVEN || got < SIZE || verified);            /* I5 */
         assert(at < got);
         at = got; got = 0);
    goto read;

leave:
    atomic { fd = NONE; got = 0; seen = 0; must = false; many = false }
#if LEAVING
    if :: s != NONE -> unsubscribe() :: else fi;
    reap();                        /* Flight.leave */
#else
    STEP(if :: s != NONE -> word[s] = word[s] & 254; UNLINK(bell[me]); bell[me] = NONE;
                            posts[me] = 0; slot_lock[s] = NONE; s = NONE
            :: else
         fi;
         if :: named && byte_0 == NONE && !IS_READ -> bells = bells & ~NAMED_BELLS; named = false :: else fi);
#endif
    atomic { visits--; at = 0; must = true }
    if :: visits > 0 -> goto join :: else fi;
gone:
    atomic {
        left[me] = true;
        at = 0; s = 0; seen = 0; got = 0; fd = 0; i = 0; visits = 0; list = 0; must = false;
        many = false
    }
}

/* claims.sweep: the doorbells are listed before the segments, which are older. */
inline sweep() {
    STEP(heard = bells);
    if
    :: atomic { ALIVE && named && life == NONE } reap()
    :: atomic { ALIVE && (!named || life != NONE) }
    :: DIES
    fi;
    if
    :: atomic { ALIVE && !named -> list = heard; heard = 0 } unlink_listed()
    :: atomic { ALIVE && named -> heard = 0 }
    :: DIES
    fi
}

proctype Sweeper(byte me) {
    byte sweeps, i;
    short list, heard;
    sweeps = SWEEPS;
    do
    :: sweeps > 0 -> sweep(); sweeps--
    :: break
    od;
gone:
    atomic { left[me] = true; sweeps = 0; i = 0; list = 0; heard = 0 }
}

/* When all have gone, the next user of the host sweeps. */

#define OVER(k) (leads[k] == NONE || over[k])
#if LEADERS > 2
#define LEADERS_ARE_OVER (OVER(0) && OVER(1) && OVER(2))
#elif LEADERS > 1
#define LEADERS_ARE_OVER (OVER(0) && OVER(1))
#else
#define LEADERS_ARE_OVER OVER(0)
#endif
#define LOCKS_ARE_FREE (life == NONE && byte_0 == NONE && !IS_READ \
                        && file_lock[0] == NONE && file_lock[1] == NONE)

proctype Last(byte me) {
    byte i;
    short list, heard;
end:
    left[1] && left[2] && left[3] && LEADERS_ARE_OVER && LOCKS_ARE_FREE;
    assert(kills < KILLS || (!named && bells == 0));          /* only the killed need a sweep */
    sweep();
    assert(!named && bells == 0 && LOCKS_ARE_FREE);           /* I8 */
    assert(at_final == NONE || verified);                     /* I5 */
gone:
    skip
}

/* What may happen at any time. */

#define LEADS(p) (leads[leaders - 1] == p && !over[leaders - 1])

inline kill(p, lives) {
    atomic {
        kills > 0 && ((VICTIMS >> p) & 1) && !dead[p] && (lives) ->
        dead[p] = true;
        kills--;
        if :: ringing[p] -> missed = true; ringing[p] = false :: else fi;
        if
        :: p == 1 || p == 2 -> asleep[p] = false; wanted[p] = 0; bell[p] = NONE; posts[p] = 0
        :: else
        fi
    }
}

proctype Killer() {
end:
    do
    :: kill(0, !over[0])
    :: kill(1, !left[1] || LEADS(1))
    :: kill(2, !left[2] || LEADS(2))
    :: kill(3, !left[3])
    od
}

proctype Kernel() {
end:    do
    :: atomic {
            life < 4 && dead[life] ->
            if :: leading == life -> leading = NONE :: else fi;
            if :: byte_0 == life -> byte_0 = NONE :: else fi;
            life = NONE
        }
    :: atomic { byte_0 < 4 && byte_0 != life && dead[byte_0] -> byte_0 = NONE }
    :: atomic { file_lock[0] < 4 && dead[file_lock[0]] -> file_lock[0] = NONE }
    :: atomic { file_lock[1] < 4 && dead[file_lock[1]] -> file_lock[1] = NONE }
    :: atomic { slot_lock[0] < 4 && dead[slot_lock[0]] -> slot_lock[0] = NONE }
    :: atomic { slot_lock[1] < 4 && dead[slot_lock[1]] -> slot_lock[1] = NONE }
    od
}

/* I4, more strictly than the code needs it: a reader sleeps although there is news for it, and no
 * process is about to ring. Only the end of its wait would wake it, which is the price of a kill. */

#define IS_RINGING (ringing[0] || ringing[1] || ringing[2])
#define NEWS(r) (published >= wanted[r] || TERMINAL(state) || handed)
#define UNHEARD(r) (asleep[r] && posts[r] == 0 && NEWS(r) && !IS_RINGING && !missed)

proctype Watch() {
end:    atomic { UNHEARD(1) || UNHEARD(2) -> assert(false) }
}

init {
    atomic {
        byte k = 0;
        do :: k < LEADERS -> leads[k] = NONE; k++ :: else -> break od;
        leads[0] = 0;
        bell[0] = NONE; bell[1] = NONE; bell[2] = NONE;
        file_lock[1] = NONE;
        slot_lock[0] = NONE; slot_lock[1] = NONE;
        length[0] = KEPT;
        k = 0;
        do :: k < LEADERS -> run Leader(k); k++ :: else -> break od;
        run Reader(1);
        if :: READERS > 1 -> run Reader(2) :: else -> left[2] = true fi;
        if :: SWEEPS > 0 -> run Sweeper(3) :: else -> left[3] = true fi;
        run Last(4); run Killer(); run Kernel();
#if JOINED
        slot_lock[0] = 1; word[0] = 1 << 1 | 1; bell[1] = BELL(0, 1);
        slot_lock[1] = 2; word[1] = 1 << 1 | 1; bell[2] = BELL(1, 1);
        bells = 1 << bell[1] | 1 << bell[2];
#endif
        run Watch();
        k = 0
    }
}
