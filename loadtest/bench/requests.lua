-- wrk's requests: 256 users in turn; of the shape that its argument says.
local requests, turn = {}, 0

init = function(args)
  for user = 1, 256 do
    local name = "user-" .. user
    if args[1] == "check" then
      local body = '{"user":"' .. name .. '","action":"api"}'
      requests[user] = wrk.format("POST", "/v1/check", { ["content-type"] = "application/json" }, body)
    else
      local path = args[1] == "authz" and "/v1/authz/" or "/"
      requests[user] = wrk.format("GET", path, { ["x-user"] = name })
    end
  end
end

request = function()
  turn = turn % 256 + 1
  return requests[turn]
end
