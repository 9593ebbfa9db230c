-- The rest of plain.lua: every operation, any rules, keys in whatever state.
local ALGORITHMS = {g = gcra, w = fixed_window, l = sliding_log}

local function read_rules(text)
  local next_token = string.gmatch(text, '%S+')
  local rules, keys = {}, 1
  for letter in next_token do
    local rule = ALGORITHMS[letter].spec(next_token)
    rule.letter, rule.algorithm = letter, ALGORITHMS[letter]
    if rule.own_key then keys = keys + 1 end
    rules[#rules + 1] = rule
  end
  return rules, keys
end

-- Gives the states of all rules of an item; `dirty` if they must be written whatever is decided.
local function load_item(rules, first_key, now)
  local value = redis.pcall('GET', KEYS[first_key])
  if type(value) == 'table' then value = false end -- a foreign value: overwritten by the next charge
  local tokens = {}
  if value then
    for token in string.gmatch(value, '%S+') do tokens[#tokens + 1] = token end
  end
  local item, at, log_key = {key = KEYS[first_key], states = {}, dirty = false}, 1, first_key
  for index, rule in ipairs(rules) do
    if rule.own_key then
      log_key = log_key + 1
      local state, _, dirty = rule.algorithm.load(rule, tokens, at, now, KEYS[log_key])
      item.states[index], item.dirty = state, item.dirty or dirty
    elseif tokens[at] == rule.letter then
      local state, took, dirty = rule.algorithm.load(rule, tokens, at, now)
      item.states[index], at, item.dirty = state, at + took, item.dirty or dirty
    else
      item.states[index] = rule.algorithm.fresh(rule, now)
      if tokens[at] == 'g' then at = at + 5 elseif tokens[at] == 'w' then at = at + 4 end
    end
  end
  while tokens[at] == 'g' or tokens[at] == 'w' do -- rules that there are no more
    at = at + (tokens[at] == 'g' and 5 or 4)
  end
  local from, length = sane_number(tokens[at + 1]), sane_number(tokens[at + 2])
  if tokens[at] == 'b' and from and length then
    if from > now then from, item.dirty = now, true end
    if now < from + length then item.blocked_from, item.blocked_for = from, length end
  end
  return item
end

-- Milliseconds to live for what matters for so many microseconds: rounded up, and no more than a server takes.
local function lifetime(lasts)
  return string.format('%.0f', math.min(math.max(1, math.ceil(lasts / 1000)), 1e15))
end

local function blocked_left(item, now)
  return item.blocked_from and item.blocked_from + item.blocked_for - now or 0
end

local function save_item(rules, item, now)
  local parts, lasts = {}, 0
  for index, rule in ipairs(rules) do
    local state = item.states[index]
    local drained = rule.algorithm.drained(rule, state, now)
    if rule.own_key then
      if state.last then redis.call('PEXPIRE', state.key, lifetime(drained)) end
    else
      parts[#parts + 1] = rule.algorithm.store(rule, state, now)
      lasts = math.max(lasts, drained)
    end
  end
  if item.blocked_from then
    parts[#parts + 1] = string.format('b %.0f %.0f', item.blocked_from, item.blocked_for)
    lasts = math.max(lasts, blocked_left(item, now))
  end
  if lasts > 0 then
    redis.call('SET', item.key, table.concat(parts, ' '), 'PX', lifetime(lasts))
  else
    redis.call('DEL', item.key)
  end
end

local function room_of(rules, item)
  local room = math.huge
  for index, rule in ipairs(rules) do
    room = math.min(room, rule.algorithm.room(rule, item.states[index]))
  end
  return room
end

local function wait_of(rules, item, now, cost)
  local wait = 0
  for index, rule in ipairs(rules) do
    if cost > rule.most then return math.huge end
    wait = math.max(wait, rule.algorithm.wait(rule, item.states[index], now, cost))
  end
  return wait
end

local function charge_all(rules, item, now, units, at)
  for index, rule in ipairs(rules) do
    rule.algorithm.charge(rule, item.states[index], now, units, at)
  end
  item.dirty = true
end

local function refund_all(rules, item, now, units)
  for index, rule in ipairs(rules) do
    rule.algorithm.refund(rule, item.states[index], now, units)
  end
  item.dirty = true
end

local operations = {}

-- As many times `cost` as there is room for, `times` at the most: callers of one key, or the units of one caller.
function operations.acquire(rules, item, now, cost, times)
  if item.blocked_from then return 0 end
  if cost == 0 then return times end
  local granted = 0
  if wait_of(rules, item, now, cost) == 0 then
    granted = math.min(times, math.floor(room_of(rules, item) / cost))
  end
  if granted > 0 then charge_all(rules, item, now, granted * cost, now) end
  return granted
end

-- Charges now for a call that passes within `longest` microseconds, and tells when; -1 and nothing if it does not.
function operations.reserve(rules, item, now, cost, longest)
  local wait = wait_of(rules, item, now, cost)
  if item.blocked_from or wait > longest then return -1 end
  if cost > 0 then charge_all(rules, item, now, cost, now + wait) end
  return wait
end

function operations.peek(rules, item, now, cost)
  return (not item.blocked_from and (cost == 0 or wait_of(rules, item, now, cost) == 0)) and 1 or 0
end

function operations.refund(rules, item, now, cost)
  refund_all(rules, item, now, cost)
  return cost
end

-- Gives how many callers move up when one in front of them has left, "<cost> <cost> ...", and their waits.
function operations.requeue(rules, item, now, cost, costs)
  local waits, all = {0}, cost
  for units in string.gmatch(costs, '%S+') do all = all + tonumber(units) end
  for index, rule in ipairs(rules) do
    (rule.algorithm.withdraw or rule.algorithm.refund)(rule, item.states[index], now, all)
  end
  item.dirty = true
  for units in string.gmatch(costs, '%S+') do
    local wait = wait_of(rules, item, now, tonumber(units))
    charge_all(rules, item, now, tonumber(units), now + wait)
    waits[#waits + 1] = string.format('%.0f', wait)
  end
  waits[1] = #waits - 1
  return table.concat(waits, ' ')
end

function operations.reset(rules, item, now)
  redis.call('DEL', item.key)
  for index, rule in ipairs(rules) do
    if rule.own_key then redis.call('DEL', item.states[index].key) end
    item.states[index] = rule.own_key and {key = item.states[index].key} or rule.algorithm.fresh(rule, now)
  end
  item.dirty, item.blocked_from = false, nil
  return 1
end

function operations.block(rules, item, now, cost, duration)
  item.blocked_from, item.blocked_for = now, duration
  if duration == 0 then item.blocked_from = nil end
  item.dirty = true
  return 1
end

-- After this server was out of reach: what is used of each rule at least. To do it twice does no harm.
function operations.replay(rules, item, now, cost, levels)
  if type(levels) == 'number' then levels = string.format('%.0f', levels) end
  local next_token = string.gmatch(levels, '%S+')
  for index, rule in ipairs(rules) do
    rule.algorithm.replay(rule, item.states[index], now, tonumber(next_token()))
  end
  item.dirty = true
  return 1
end

local function decide(rules, operation, first_key, now, cost, extra)
  local item = load_item(rules, first_key, now)
  local gave = operation(rules, item, now, cost, extra)
  if item.dirty then save_item(rules, item, now) end
  local told = {type(gave) == 'number' and string.format('%.0f', gave) or gave}
  told[2] = string.format('%.0f', blocked_left(item, now))
  for index, rule in ipairs(rules) do
    told[index + 2] = rule.algorithm.tell(rule, item.states[index], now, cost)
  end
  return table.concat(told, ' ')
end

while ARGV[argument] do
  local rules, keys = read_rules(ARGV[argument])
  local operation, cost = operations[ARGV[argument + 1]], tonumber(ARGV[argument + 2])
  local extra = tonumber(ARGV[argument + 3]) or ARGV[argument + 3]
  for _ = done + 1, tonumber(ARGV[argument + 4]) do
    reply[#reply + 1] = decide(rules, operation, key_at, now, cost, extra)
    key_at = key_at + keys
  end
  argument, done = argument + 5, 0
end
return table.concat(reply, ' ')
