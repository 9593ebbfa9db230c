-- Fixed windows of a time zone, by the server's clock. The same arithmetic as fixed_window.py: the caller tells how
-- local time runs around now, the server which window that makes.
-- Stored as "w <index> <use> <limit>".
local fixed_window = {}

function fixed_window.spec(next_token)
  return {
    most = tonumber(next_token()), per = tonumber(next_token()), before = tonumber(next_token()),
    change = tonumber(next_token()), after = tonumber(next_token()),
  }
end

local function window_index(rule, moment)
  return math.floor((moment + (moment < rule.change and rule.before or rule.after)) / rule.per)
end

local function window_start(rule, index)
  local start = index * rule.per - rule.before
  if start < rule.change then return start end
  return math.max(rule.change, index * rule.per - rule.after)
end

-- How many windows ahead `units` fit behind what is used: a call is never split between two windows.
local function windows_ahead(rule, use, units)
  local ahead = math.floor(use / rule.most)
  if use - ahead * rule.most + units > rule.most then ahead = ahead + 1 end
  return ahead
end

function fixed_window.load(rule, tokens, at, now)
  local index, use, limit = sane_number(tokens[at + 1]), sane_number(tokens[at + 2]), sane_number(tokens[at + 3])
  local state = {index = window_index(rule, now), use = 0}
  if not (index and use and limit) or limit == 0 then
    return state, 4, false
  end
  if use > limit * 100000 then use = limit end -- nothing of ours reserves so far ahead
  -- A window of the future, which a clock that stepped back leaves, becomes this one.
  state.use = math.max(0, use - math.max(0, state.index - index) * limit)
  local changed = limit ~= rule.most
  if changed then -- what was used of this window stays used; what was reserved in later ones does not
    state.use = math.min(state.use, rule.most)
  end
  return state, 4, changed or index > state.index
end

function fixed_window.fresh(rule, now)
  return {index = window_index(rule, now), use = 0}
end

function fixed_window.room(rule, state)
  return math.max(0, rule.most - state.use)
end

function fixed_window.wait(rule, state, now, units)
  local ahead = windows_ahead(rule, state.use, units)
  if ahead == 0 then return 0 end
  return window_start(rule, state.index + ahead) - now
end

function fixed_window.charge(rule, state, now, units, at)
  local use = math.max(state.use, (window_index(rule, at) - state.index) * rule.most)
  state.use = math.max(use, windows_ahead(rule, use, units) * rule.most) + units
end

function fixed_window.refund(rule, state, now, units)
  state.use = math.max(0, state.use - units)
end

function fixed_window.replay(rule, state, now, use)
  state.use = math.max(state.use, math.min(use, rule.most))
end

function fixed_window.drained(rule, state, now)
  if state.use == 0 then return 0 end
  return window_start(rule, state.index + math.ceil(state.use / rule.most)) - now
end

function fixed_window.store(rule, state, now)
  return string.format('w %.0f %.0f %.0f', state.index, state.use, rule.most)
end

function fixed_window.tell(rule, state, now)
  return string.format('%.0f %.0f', state.use, window_start(rule, state.index + 1) - now)
end
