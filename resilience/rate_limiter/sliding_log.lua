-- A log of what was admitted: never more than the limit in any trailing period. The same arithmetic as sliding_log.py.
-- A list of its own for each key, "<moment> <total up to and with this entry> <weight> <written>": what is used follows
-- from its two ends, whatever its length. The totals only grow, so nothing has to be kept beside the list.
local sliding_log = {}

function sliding_log.spec(next_token)
  return {
    most = tonumber(next_token()), per = tonumber(next_token()), longest = tonumber(next_token()), own_key = true,
  }
end

local function log_entry(text)
  local moment, total, weight, written = string.match(text or '', '^(%S+) (%S+) (%S+) (%S+)$')
  moment, total, weight, written = sane_number(moment), sane_number(total), sane_number(weight), sane_number(written)
  if moment and total and weight and written then
    return {moment = moment, total = total, weight = weight, written = written}
  end
end

local function log_push(state, moment, weight, now)
  local last = state.last
  local total = (last and last.total or 0) + weight
  moment = math.max(moment, last and last.moment or moment)
  redis.call('RPUSH', state.key, string.format('%.0f %.0f %.0f %.0f', moment, total, weight, now))
  state.last = {moment = moment, total = total, weight = weight, written = now}
  state.first = state.first or state.last
end

-- Writes the whole log anew, every moment earlier by `shift`. Of use after the server's clock stepped back.
local function log_shift(state, shift, now)
  local entries = redis.call('LRANGE', state.key, 0, -1)
  redis.call('DEL', state.key)
  state.first, state.last = nil, nil
  for _, text in ipairs(entries) do
    local entry = log_entry(text)
    if entry then log_push(state, entry.moment - shift, entry.weight, now) end
  end
end

function sliding_log.load(rule, tokens, at, now, key)
  local state = {key = key}
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= 'list' then -- nothing of ours
    redis.call('DEL', key)
  end
  local dirty, length = false, redis.call('LLEN', key)
  state.last = log_entry(redis.call('LINDEX', key, -1))
  while length > 0 and not state.last do -- nothing of ours
    redis.call('RPOP', key)
    length, state.last = length - 1, log_entry(redis.call('LINDEX', key, -1))
  end
  if state.last and state.last.written > now then
    log_shift(state, state.last.written - now, now)
    dirty = true
  end
  if state.last and state.last.moment - now > rule.longest then -- nothing of ours wrote that
    log_shift(state, state.last.moment - now, now)
    dirty = true
  end
  while state.last do
    state.first = log_entry(redis.call('LINDEX', key, 0))
    if state.first and state.first.moment > now - rule.per then break end
    redis.call('LPOP', key)
    if redis.call('LLEN', key) == 0 then state.first, state.last = nil, nil end
  end
  return state, 0, dirty
end

local function log_used(state)
  if not state.last then return 0 end
  return state.last.total - state.first.total + state.first.weight
end

function sliding_log.room(rule, state)
  return math.max(0, rule.most - log_used(state))
end

function sliding_log.wait(rule, state, now, units)
  local over = log_used(state) + units - rule.most
  if over <= 0 or not state.last then return 0 end
  local position, moment = 0, now
  while over > 0 do
    local chunk = redis.call('LRANGE', state.key, position, position + 99)
    if #chunk == 0 then break end
    for _, text in ipairs(chunk) do
      local entry = log_entry(text)
      if entry then moment, over = entry.moment, over - entry.weight end
      if over <= 0 then break end
    end
    position = position + 100
  end
  return math.max(1, moment + rule.per - now)
end

function sliding_log.charge(rule, state, now, units, at)
  log_push(state, at, units, now)
end

-- From the oldest entries: see sliding_log.py.
function sliding_log.refund(rule, state, now, units)
  while units > 0 and state.first do
    local taken = math.min(units, state.first.weight)
    units = units - taken
    redis.call('LPOP', state.key)
    if taken < state.first.weight then
      local first = state.first
      first.weight = first.weight - taken
      redis.call('LPUSH', state.key,
        string.format('%.0f %.0f %.0f %.0f', first.moment, first.total, first.weight, first.written))
    else
      state.first = log_entry(redis.call('LINDEX', state.key, 0))
      if not state.first then state.last = nil end
    end
  end
end

-- The newest, for nothing was made of them: see sliding_log.py.
function sliding_log.withdraw(rule, state, now, units)
  while units > 0 and state.last do
    local last = state.last
    local taken = math.min(units, last.weight)
    units = units - taken
    redis.call('RPOP', state.key)
    if taken < last.weight then
      last.weight, last.total = last.weight - taken, last.total - taken
      redis.call('RPUSH', state.key,
        string.format('%.0f %.0f %.0f %.0f', last.moment, last.total, last.weight, last.written))
    else
      state.last = log_entry(redis.call('LINDEX', state.key, -1))
      if not state.last then state.first = nil end
    end
  end
end

function sliding_log.replay(rule, state, now, used)
  local weight = math.min(used, rule.most) - log_used(state)
  if weight > 0 then log_push(state, now, weight, now) end
end

function sliding_log.drained(rule, state, now)
  if not state.last then return 0 end
  return state.last.moment + rule.per - now
end

function sliding_log.tell(rule, state, now, units)
  return string.format('%.0f %.0f %.0f', log_used(state), sliding_log.wait(rule, state, now, units),
    sliding_log.drained(rule, state, now))
end
