"""The decisions of the directory, as Lua scripts: Redis runs each of them as one step.

Keys of one digest, all with the same hash tag, all with a time to live:

    lead      which node may pull from the upstream; ends by itself unless it is renewed
    fly       sorted set: node -> rank, of the nodes that have a flight of the digest
    who       hash: node -> token of the flight that it has
    seq       counts up; ranks are made of it
    have      sorted set: node -> since when it has the complete blob; the 64 newest
    bad       sorted set: node -> until when it is no parent
    deceived  sorted set: nodes that got wrong bytes themselves -> since when they know
    gen       hash: node -> generation of its flight; "" -> generation of a flight that begins now
    shun      hash: node -> nodes that it does not want, because some of its bytes were wrong
    from      hash: node -> the node that it was told to ask first, for people
    fail      the last failure of the upstream, and for which flights it counts

The rule against cycles: **a parent ranks below its child.**

    a node joins                     it gets `seq + 1`: above all others
    a node gets the lease, or        it gets a rank below all others: it pulls from the upstream,
      gets it again                    so nobody is its parent
    other nodes call a node dead     its rank stays: it may be alive, and have children
    the flight of a node ends        its rank goes, if no other process of the node goes on with
                                       that flight (`who` has the same token)
    a node is said to have the       it is asked for the complete blob only (`+` before its name):
      complete blob                    what is said may be old, and it may have a flight by now
    the directory comes back empty   nodes get new ranks when they next ask. A node that has not
                                       asked yet has no rank, so it becomes nobody's parent

The rank only says who may be whose parent. Which node is asked first is a matter of speed: the
members of a flight are the places of a heap, in the order of their ranks, and the holders of the
complete blob are its roots. `tests/cluster/test_scripts.py` plays 100,000 random steps.

The rule against wrong bytes: **a parent is of the generation of its child, or of a later one.**

A node finds out that its bytes are wrong when it has all of them, because only then it can verify
them. Until then it has handed them on. So all flights of that time may be wrong, and to get the
bytes from another one of them is no way out:

    A leads, B is its child, C the child of B; A lies
    B verifies: wrong. Says so (`LEAVE`), then ends its flight. Its connection to C breaks
    C asks (`DECIDE`): B has said that its bytes are wrong since C began to get them, so those of C
      are wrong, too: `wrong`. C says so in its turn, and ends its flight; and so on, down the tree
    the readers of B try again: a flight of B begins, of the next generation. C is still in flight,
      of the first generation, so it is no parent of B; A is bad for ten minutes; so B leads. One
      node of the new generation has the lease, the others are in a tree below it

    a flight begins                  it is of the generation `gen[""]`, which begins at 0
    a flight of that generation      `gen[""]` counts up. What others of that generation find later
      turns out to be wrong            does not count again, or each of them would have to lead
    a flight has nothing but bytes   its bytes are what the upstream gives: it may be the parent of
      of the upstream, and leads       every generation. What it has is what a new flight would get
    a node has the complete blob     it has verified it: the same
    a flight goes on with bytes of   it keeps the generation of its node's flight; without one, it
      an earlier process               is of the first

Which parent is blamed? A parent whose flight is in progress knows as little as its child. If a
parent was deceived itself after the child began to get bytes from it, the parent is not blamed. A
parent that has verified what it gave is bad for ten minutes if it gave all bytes, and for a minute
if other nodes gave a part. The child itself asks none of its parents for that blob again, until it
has the blob.

A failure of the upstream is told to the flights that waited for it, and to no flight that began
later: that one tries for itself, as it would without a cluster.

Randomness comes from the caller, because scripts have none; the time comes from Redis, because the
clocks of nodes differ. Redis or Valkey, 6.2 or later.
"""

from __future__ import annotations

KEYS: tuple[str, ...] = (
    "lead", "fly", "who", "seq", "have", "bad", "deceived", "fail", "from", "gen", "shun",
)  # fmt: skip
"""The keys of one digest, in the order in which each script gets them."""
PREFIX = "shmstream:{"
"""How the name of each of these keys begins in Redis. The digest follows, as its hash tag."""


def name_of(digest: str, key: str) -> str:
    """The name in Redis of one of the `KEYS` of a digest."""
    return f"{PREFIX}{digest}}}:{key}"


REFUSED_FOR = 10
"""Seconds for which a node that does not answer is no parent."""
WRONG_FOR = 600
"""Seconds for which a node that gave wrong bytes is no parent."""
SUSPECT_FOR = 60
"""The same, if another node may have given them."""
HOLDERS = 64
"""How many holders of a complete blob are remembered; the newest ones."""
HELD_FOR = 86400
"""Seconds for which a holder is remembered."""
FAILED_FOR = 60
"""Seconds for which a failure of the upstream is told."""
ENDS = ("complete", "failed", "wrong", "over", "handed over", "evicted")
"""How a flight ends, for `LEAVE`."""

_COMMON = f"""
local REFUSED_FOR, WRONG_FOR, FAILED_FOR = {REFUSED_FOR}, {WRONG_FOR}, {FAILED_FOR}
local HOLDERS, HELD_FOR = {HOLDERS}, {HELD_FOR}
local ANY = 1000000  -- of a flight that may be the parent of every generation
local lead, fly, who, seq, have, bad, deceived, fail, from, gen, shun = unpack(KEYS)
local node, token, lease, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function accuse(accused, seconds)
    redis.call('ZADD', bad, 'GT', now + seconds, accused)
    redis.call('EXPIRE', bad, WRONG_FOR)
    redis.call('ZREM', have, accused)
end

local function get_the_lead()
    local rank = -redis.call('INCR', seq)
    redis.call('ZREM', fly, node)
    local first = redis.call('ZRANGE', fly, 0, 0, 'WITHSCORES')
    if first[1] and tonumber(first[2]) <= rank then  -- `seq` was lost
        rank = tonumber(first[2]) - 1
    end
    redis.call('ZADD', fly, rank, node)
    redis.call('HSET', who, node, token)
    redis.call('SET', lead, node, 'PX', lease)
    return rank
end

local newest = tonumber(redis.call('HGET', gen, '') or '0')
local function generation(each) return tonumber(redis.call('HGET', gen, each) or '0') end

local function keep()
    for _, key in ipairs({{fly, who, seq, from, gen}}) do redis.call('EXPIRE', key, ttl) end
end
"""

DECIDE: str = (
    _COMMON
    + """
local joins, fan, chance = ARGV[5] == '1', tonumber(ARGV[6]), tonumber(ARGV[7])
local refused, avoid, source = ARGV[8], ARGV[9], ARGV[10]
local told, last, since = ARGV[11] or '', ARGV[12] or '', tonumber(ARGV[13] or '0')

if last ~= '' and tonumber(redis.call('ZSCORE', deceived, last) or '0') > since then
    return {'wrong', last}
end
for each in string.gmatch(refused, '%S+') do accuse(each, REFUSED_FOR) end
redis.call('ZREMRANGEBYSCORE', bad, '-inf', now)
local is_bad, unwanted = {}, {[node] = true}
for _, each in ipairs(redis.call('ZRANGE', bad, 0, -1)) do
    is_bad[each], unwanted[each] = true, true
end
local is_avoided = {}  -- for bytes in flight
for mark, each in string.gmatch(avoid, '(%+?)(%S+)') do
    is_avoided[each] = true
    if mark == '+' then unwanted[each] = true end
end
local is_shunned = {}
for each in string.gmatch(redis.call('HGET', shun, node) or '', '%S+') do
    is_shunned[each], unwanted[each] = true, true
end

local is_pure, mine = told == '', newest
if told == '-1' and joins then  -- the bytes of an earlier process of the node
    mine = generation(node)
    is_pure, mine = mine == ANY, math.min(mine, newest)
elseif not is_pure then
    mine = math.max(tonumber(told), 0)
end
local function is_older(each) return mine > 0 and generation(each) < mine end

local rank = redis.call('ZSCORE', fly, node)
local failure = redis.call('GET', fail)
if failure and rank and redis.call('HGET', who, node) == token then
    local last, text = string.match(failure, '^(%d+) (.*)$')
    if math.abs(tonumber(rank)) <= tonumber(last) and string.find(text, source, 1, true) then
        return {'failed', text}
    end
end
if joins then
    if not rank then
        rank = redis.call('INCR', seq)
        redis.call('ZADD', fly, rank, node)
    end
    redis.call('HSET', who, node, token)
    redis.call('ZREM', have, node)
end

local count = redis.call('ZCARD', fly)
local place = joins and redis.call('ZRANK', fly, node) or count
local peers, is_peer = {}, {}
local function offer(each, mark)
    if not each or unwanted[each] or is_peer[each] then return end
    if mark or not (is_avoided[each] or is_older(each)) then
        peers[#peers + 1], is_peer[each] = (mark or '') .. each, true
    end
end
local function random(below)
    chance = (chance * 16807) % 2147483647
    return chance % below
end
local function member(index) return redis.call('ZRANGE', fly, index, index)[1] end

local holders = {}
for _, each in ipairs(redis.call('ZRANGE', have, 0, -1)) do
    if not unwanted[each] then holders[#holders + 1] = each end
end
local roots = #holders
local first = roots > 0 and random(roots) or 0
local function offer_holders()
    for i = 0, math.min(roots, 3) - 1 do offer(holders[(first + i) % roots + 1], '+') end
end
local parent = place
local is_near = roots > 0 and place < fan * roots
if is_near then
    first = math.floor(place / fan)
    offer_holders()
elseif roots > 0 then
    parent = math.floor((place - fan * roots) / fan)
    offer(member(parent))
end
while parent > 0 and #peers == 0 do
    parent = math.floor((parent - 1) / fan)
    offer(member(parent))
end
if place > 0 and not is_near then
    for _ = 1, 3 do offer(member(random(place))) end
end
if not is_near and roots > 0 then offer_holders() end
local leader = redis.call('GET', lead)
if leader and leader ~= node then
    local its = redis.call('ZSCORE', fly, leader)
    if not joins or not its or tonumber(its) < tonumber(rank) then offer(leader) end
end
if #peers == 0 and place > 0 then
    for _, each in ipairs(redis.call('ZRANGE', fly, 0, math.min(place, 64) - 1)) do offer(each) end
end

local verdict = 'peers'
if joins and leader == node then
    if roots == 0 then
        verdict, peers = 'lead', {}
        get_the_lead()
    else
        redis.call('DEL', lead)
    end
elseif #peers == 0 then
    verdict = 'wait'
    if joins and (not leader or is_bad[leader] or is_shunned[leader] or is_older(leader)) then
        verdict = 'lead'
        get_the_lead()
    end
end
if joins then
    redis.call('HSET', gen, node, verdict == 'lead' and is_pure and ANY or mine)
    redis.call('HSET', from, node, verdict == 'lead' and 'upstream' or peers[1] or 'nobody')
end
keep()
local at = time[1] .. '.' .. string.format('%06d', time[2])
return {verdict, leader or '', tostring(mine), at, unpack(peers)}
"""
)
"""Where a node gets the rest from: `lead`, `peers` (in this order), `wait`, `failed` (why), or from
nowhere, because what it has is `wrong`.

Arguments: node, token, lease in ms, time to live of ranks in s, 1 if the node gives to peers, fan,
a random number, nodes that did not answer, nodes to leave out this time (with `+` before its name:
also if it has the complete blob by now), fingerprint of the source; the generation of the flight:
empty if all it has is of the upstream, -1 if it has bytes of an earlier process; the node that gave
more than half of the blob, and since when it gave the last of that.
The second item of the answer is the leader, or why the upstream failed, or the deceived parent; the
third is the generation of the flight, the fourth the time.
"""

RENEW: str = (
    _COMMON
    + """
local leader = redis.call('GET', lead)
if leader and leader ~= node then return 0 end
if not leader and redis.call('ZCARD', have) > 0 then return 0 end  -- others have all of it
if leader and redis.call('ZSCORE', fly, node) then
    redis.call('PEXPIRE', lead, lease)
else
    get_the_lead()
end
keep()
return 1
"""
)
"""Keep the lease; 1, or 0 if another node has it. Also makes it anew in an empty directory."""

LEAVE: str = (
    _COMMON
    + """
local how, text, told = ARGV[5], ARGV[6], tonumber(ARGV[7] or '-1')
local current = redis.call('HGET', who, node)
local is_mine = current == token
local its = told < 0 and generation(node) or told
if how == 'handed over' then
    if is_mine and redis.call('GET', lead) == node then redis.call('DEL', lead) end
    return 1
end
if is_mine then
    if how == 'failed' then
        local last = tonumber(redis.call('GET', seq) or '0')
        redis.call('SET', fail, string.format('%d ', last) .. text, 'EX', FAILED_FOR)
    end
    redis.call('HDEL', who, node)
    redis.call('HDEL', from, node)
    redis.call('HDEL', gen, node)
    redis.call('ZREM', fly, node)
    if redis.call('GET', lead) == node then redis.call('DEL', lead) end
end
if how == 'complete' and (is_mine or not current) then
    redis.call('ZADD', have, now, node)
    redis.call('ZREMRANGEBYRANK', have, 0, -(HOLDERS + 1))
    redis.call('EXPIRE', have, HELD_FOR)
    redis.call('DEL', fail)
    redis.call('HDEL', shun, node)
elseif how == 'evicted' then
    redis.call('ZREM', have, node)
elseif how == 'wrong' then
    if its >= newest then
        redis.call('HSET', gen, '', newest + 1)
        redis.call('EXPIRE', gen, ttl)
    end
    local unwanted = ''
    for each, since, seconds in string.gmatch(text, '(%S+)|(%S+)|(%S+)') do
        if tonumber(redis.call('ZSCORE', deceived, each) or '0') <= tonumber(since) then
            unwanted = unwanted .. each .. ' '
            if tonumber(seconds) > 0 then accuse(each, tonumber(seconds)) end
        end
    end
    if node ~= '' then
        redis.call('ZADD', deceived, now, node)
        redis.call('EXPIRE', deceived, WRONG_FOR)
        redis.call('ZREM', have, node)
        unwanted = string.sub(unwanted .. (redis.call('HGET', shun, node) or ''), 1, 1000)
        redis.call('HSET', shun, node, unwanted)
        redis.call('EXPIRE', shun, WRONG_FOR)
    end
end
return 1
"""
)
"""A flight of this node has ended, or its blob was evicted.

Arguments: node, token, lease, time to live, one of `ENDS`, a text, and the generation of the flight
(-1: what `DECIDE` has noted). The text is why the upstream failed, or which nodes gave the wrong
bytes: for each, with bars between: its address, since when it gave bytes, and for how many seconds
it is to be no parent. A node that was deceived itself since then is not blamed for what it handed
on: it tells so before its children can have the last chunk.
"""
