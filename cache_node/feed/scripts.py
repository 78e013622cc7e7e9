"""The Lua scripts.  Those about the feed begin by making sure that the generation is this very server's and history's.

A generation is born when the server's `master_replid` is not the stored one (restart, failover), nothing is stored
(FLUSHALL, an empty server), or the stream ends with an entry that no script of ours wrote: max(stored + salt, what
the caller shows + salt, TIME in µs), so that none is given twice.  The salt is the caller's dice; a script's own are
loaded.  With + 1 in its place a server whose clock is behind gave the same generation to two callers that showed the
same, since it was emptied in between, and a revoked session came back.

Numbers in Lua are exact up to 2^53 only, which is the year 2255 in µs: a stored, shown or foreign generation from
beyond is no generation, and a stream that ends there is removed.  What is stored and no number is nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

# KEYS[1] generation, KEYS[2] feed; ARGV[1] the newest generation the caller has seen, ARGV[2] the salt of a new one.
# XINFO is asked at a birth only: ids of a stream must rise even if the clock stepped back and the hash was lost.
_GENERATION = """
local function plausible(text)
  local generation = tonumber(text or 0) or 0
  return generation < 9000000000000000 and generation or 0
end
local function current(shown, salt)
  local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  local stored = redis.call('HMGET', KEYS[1], 'replid', 'generation', 'number')
  if replid and stored[1] == replid and plausible(stored[2]) > 0 and plausible(stored[3]) == tonumber(stored[3]) then
    local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
    if not last or last[1] == stored[2] .. '-' .. stored[3] then
      return tonumber(stored[2]), tonumber(stored[3])
    end
  end
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local top = 0
  local info = redis.pcall('XINFO', 'STREAM', KEYS[2])
  if not info.err then
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then top = tonumber(string.match(info[i + 1], '^(%d+)')) end
    end
  end
  if top ~= plausible(top) then redis.call('DEL', KEYS[2]) end
  local generation = math.max(math.max(plausible(stored[2]), plausible(shown), plausible(top)) + salt, now)
  local text = string.format('%.0f', generation)
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'replid', replid or '', 'generation', text, 'number', '0', 'followed', '0')
  redis.call('XTRIM', KEYS[2], 'MINID', text .. '-0')
  return generation, 0
end
"""

# ARGV[3] events to retain; then for each entry the count of its events, and source and events as msgpack.
# Trims by number, never by age: after a quiet night an age trim would leave every node with a gap.
# An id above ours that somebody has added by hand and deleted again lets the stream take no more of this generation.
_APPEND = """
local generation, number = current(ARGV[1], ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local head = '\\148' .. cmsgpack.pack(1) .. cmsgpack.pack(now)
local text = string.format('%.0f', generation)
local id
for i = 4, #ARGV, 2 do
  number = number + tonumber(ARGV[i])
  id = text .. '-' .. string.format('%.0f', number)
  local added = redis.pcall('XADD', KEYS[2], id, 'e', head .. ARGV[i + 1])
  if added.err and i == 4 and string.find(added.err, 'equal or smaller', 1, true) then
    redis.call('DEL', KEYS[1])
    generation, number = current(ARGV[1], ARGV[2])
    text, number = string.format('%.0f', generation), tonumber(ARGV[i])
    id = text .. '-' .. string.format('%.0f', number)
    added = redis.call('XADD', KEYS[2], id, 'e', head .. ARGV[i + 1])
  end
  if added.err then return added end
end
redis.call('HSET', KEYS[1], 'number', string.format('%.0f', number))
local oldest = number - tonumber(ARGV[3])
if oldest > 0 then
  redis.call('XTRIM', KEYS[2], 'MINID', '~', text .. '-' .. string.format('%.0f', oldest))
end
return id
"""

# KEYS[3] nodes; ARGV[3] field and ARGV[4] record of the caller, which has followed generation ARGV[5] for ARGV[6] µs.
# It writes in every case: an isolated old primary that may not write must not be able to confirm anything.
# A caller that has followed for a while and has no record any more: the registry was lost, and knows nobody.  Nor does
# one that holds the caller's record alone, which is new.
_CONFIRM = """
local generation, number = current(ARGV[1], ARGV[2])
local time = redis.call('TIME')
local is_new = redis.call('HSET', KEYS[3], ARGV[3], ARGV[4]) == 1
local text = string.format('%.0f', generation)
local followed = text == ARGV[5] and tonumber(ARGV[6]) or 0
local was_lost = is_new and followed > 0
if was_lost or (is_new and redis.call('HLEN', KEYS[3]) == 1) then
  redis.call('HSET', KEYS[1], 'followed', '0')
elseif followed > plausible(redis.call('HGET', KEYS[1], 'followed')) then
  redis.call('HSET', KEYS[1], 'followed', ARGV[6])
end
return {text, string.format('%.0f', number), time[1], time[2], redis.call('HLEN', KEYS[3]), was_lost and 1 or 0}
"""

# Asks the registry, and writes, for the same reason.
_ASK_REGISTRY = """
local generation, number = current(ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'asked', redis.call('TIME')[1])
return {string.format('%.0f', generation), string.format('%.0f', number),
        string.format('%.0f', plausible(redis.call('HGET', KEYS[1], 'followed'))), redis.call('HGETALL', KEYS[3])}
"""

# Removes ARGV[1] from the registry if its record still is ARGV[2].
_FORGET = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
"""


@dataclass(frozen=True, slots=True)
class Script:
    """Text of a script and the SHA-1 by which the server knows it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


APPEND = Script(_GENERATION + _APPEND)
CONFIRM = Script(_GENERATION + _CONFIRM)
ASK_REGISTRY = Script(_GENERATION + _ASK_REGISTRY)
FORGET = Script(_FORGET)
