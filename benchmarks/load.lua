-- For wrk: which requests, and what came of them as one line of JSON.  Arguments, behind a "--":
--   list FILE [trace]   the header lines of FILE in turn; trace: another traceparent on each request
--   fresh FIRST COUNT BYTES   tokens numbered from FIRST on, each once, the first ones again after COUNT
-- One line and no trace is a constant request, which costs wrk the least.

local function add(line)
  local name, value = line:match("^(.-): (.*)$")
  wrk.headers[name] = value
end

local function in_turn(requests)
  local n = 0
  return function()
    n = n % #requests + 1
    return requests[n]
  end
end

local function traced()
  local n = 0
  return function()
    n = n + 1
    wrk.headers["traceparent"] = string.format("00-%032x-%016x-01", n * 7919, n * 104729)
    return wrk.format()
  end
end

local function fresh(first, count, bytes)
  local n = -1
  return function()
    n = (n + 1) % count
    wrk.headers["X-Session-Token"] = string.format("ory_st_%05dx%019d", bytes, first + n)
    return wrk.format()
  end
end

function init(args)
  if args[1] == "fresh" then
    request = fresh(tonumber(args[2]), tonumber(args[3]), tonumber(args[4]))
    return
  end
  local requests = {}
  for line in io.lines(args[2]) do
    add(line)
    requests[#requests + 1] = wrk.format()
  end
  if args[3] == "trace" then
    request = traced()
  elseif #requests > 1 then
    request = in_turn(requests)
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "bytes": %d, "failed": %d, "p50": %f, "p99": %f, "p999": %f, "max": %f}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, latency:percentile(99.9) / 1e6, latency.max / 1e6))
end
