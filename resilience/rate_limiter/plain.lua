-- Decides for many keys in one call, by this server's clock: all rules of a key admit, or nothing is charged.
--
-- KEYS: for each item its key, and one more for each sliding log; last the set of instances, if it is refreshed.
-- ARGV: 1 "<instance> <lease in ms>", "<instance> -" as a farewell, or ""; then for each group of items: the rules, the operation, the cost, one more
-- number or words of the operation, and how many items follow each other in KEYS.
-- Reply: numbers with spaces between: this clock's microseconds; live instances (-1: not asked); then for each item: what
-- the operation gave, the microseconds for which the key is blocked, and what each rule tells.
--
-- A server runs the whole text for each call, definitions too. So the common case comes first and needs none: groups of
-- callers who take what one GCRA rule has, of keys that are as they should be. What is not so is left to the rest, which
-- says the same for everything: a batch of one takes a third of the time, and one of a hundred half.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_text = string.format('%.0f', now) -- formatting a number costs more than the arithmetic: once a call
local reply = {now_text, -1}
if ARGV[1] ~= '' then
  local id, lease = string.match(ARGV[1], '^(%S+) (%S+)$')
  local instances, now_ms = KEYS[#KEYS], math.floor(now / 1000)
  if lease == '-' then -- it ends, and says so
    redis.call('ZREM', instances, id)
    return table.concat(reply, ' ')
  end
  redis.call('ZADD', instances, now_ms, id)
  redis.call('ZREMRANGEBYSCORE', instances, '-inf', now_ms - lease)
  redis.call('ZREMRANGEBYSCORE', instances, string.format('(%.0f', now_ms), '+inf') -- left by a clock that stepped back
  redis.call('PEXPIRE', instances, lease)
  reply[2] = redis.call('ZCARD', instances)
end

-- Where the rest goes on: the group, how many of its items are done, the next key.
local argument, done, key_at = 2, 0, 1
local plain = true
while plain and ARGV[argument] do
  local unit_text, drain_text, _, ceiling, horizon = string.match(ARGV[argument], '^g (%d+) (%d+) (%d+) (%d+) (%d+)$')
  local cost = tonumber(ARGV[argument + 2])
  plain = unit_text and ARGV[argument + 1] == 'acquire' and cost > 0
  if plain then
    local drain, units = tonumber(drain_text), cost * unit_text
    local times, items = tonumber(ARGV[argument + 3]), tonumber(ARGV[argument + 4])
    local call, pcall, match, format, ceil = redis.call, redis.pcall, string.match, string.format, math.ceil
    local before, rates = 'g ' .. now_text .. ' ', unit_text .. ' ' .. drain_text
    ceiling, horizon = tonumber(ceiling), tonumber(horizon)
    while done < items do
      local level = 0
      local value = pcall('GET', KEYS[key_at])
      if value then
        local written, stored, its_rates
        if type(value) == 'string' then
          written, stored, its_rates = match(value, '^g (%d+) (%d+) (.*)$')
        end
        plain = its_rates == rates and now >= tonumber(written)
        if not plain then break end
        level = stored - (now - written) * drain
        plain = level <= horizon
        if not plain then break end
        if level < 0 then level = 0 end
      end
      local granted = math.min(times, math.floor((ceiling - level) / units))
      if granted > 0 then
        level = level + granted * units
        local level_text = format('%.0f', level)
        call('SET', KEYS[key_at], before .. level_text .. ' ' .. rates, 'PX', math.min(ceil(level / drain / 1000), 1e15))
        reply[#reply + 1] = granted .. ' 0 ' .. level_text
      else
        reply[#reply + 1] = '0 0 ' .. format('%.0f', level)
      end
      done, key_at = done + 1, key_at + 1
    end
    if plain then argument, done = argument + 5, 0 end
  end
end
if not ARGV[argument] then
  return table.concat(reply, ' ')
end
