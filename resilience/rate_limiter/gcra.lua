-- GCRA in the form of a leaky bucket: a level in drain units, and the server's microsecond at which it was written.
-- The same arithmetic as gcra.py, whose head explains the units. A level with its own time, and not the one number of
-- gcra.py, because this clock may step back: what was written in the future is taken to have been written now.
-- Stored as "g <written> <level> <unit> <drain>": unit and drain convert what was used when the limits change.
local gcra = {}

-- Reads a number that we may have written; nil for anything else, so that no foreign value can lock a key for ever.
local function sane_number(text)
  local number = tonumber(text)
  if number and number >= 0 and number < 1e18 then return number end
end

function gcra.spec(next_token)
  local rule = {
    unit_text = next_token(), drain_text = next_token(), capacity = tonumber(next_token()),
    ceiling = tonumber(next_token()), horizon = tonumber(next_token()),
  }
  rule.unit, rule.drain = tonumber(rule.unit_text), tonumber(rule.drain_text)
  rule.most = math.floor(rule.capacity / rule.unit)
  return rule
end

-- Gives the state, how many tokens it took, and whether it must be written although nothing is charged.
function gcra.load(rule, tokens, at, now)
  local written, level = sane_number(tokens[at + 1]), tonumber(tokens[at + 2])
  -- Quotas of years and many units have levels beyond what other numbers may be.
  if level and not (level >= 0 and (level < 1e18 or level <= rule.horizon)) then level = nil end
  local unit, drain = sane_number(tokens[at + 3]), sane_number(tokens[at + 4])
  if not (written and level and unit and drain) or unit == 0 or drain == 0 then
    return {level = 0}, 5, false
  end
  local future = written > now
  if not future then
    level = math.max(0, level - (now - written) * drain)
  end
  local changed = unit ~= rule.unit or drain ~= rule.drain
  if changed then -- carry units, not time; and once, or they would never drain by the new rate
    level = math.min(math.ceil(level / unit * rule.unit), rule.capacity)
  end
  if not (level <= rule.horizon) then -- nothing of ours wrote that
    level = rule.capacity
  end
  return {level = level}, 5, future or changed
end

function gcra.fresh()
  return {level = 0}
end

function gcra.room(rule, state)
  return math.max(0, math.floor((rule.ceiling - state.level) / rule.unit))
end

function gcra.wait(rule, state, now, units)
  local after = state.level + units * rule.unit
  if after <= rule.ceiling then return 0 end
  return math.ceil((after - rule.capacity) / rule.drain)
end

function gcra.charge(rule, state, now, units, at)
  state.level = math.max(state.level, (at - now) * rule.drain) + units * rule.unit
end

function gcra.refund(rule, state, now, units)
  state.level = math.max(0, state.level - units * rule.unit)
end

function gcra.replay(rule, state, now, level)
  state.level = math.max(state.level, math.min(level, rule.capacity))
end

function gcra.drained(rule, state)
  return math.ceil(state.level / rule.drain)
end

function gcra.store(rule, state, now)
  return string.format('g %.0f %.0f %s %s', now, state.level, rule.unit_text, rule.drain_text)
end

function gcra.tell(rule, state)
  return string.format('%.0f', state.level)
end
