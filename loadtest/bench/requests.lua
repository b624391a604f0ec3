-- wrk's requests: 256 users in turn.
local requests, turn = {}, 0

init = function()
  for user = 1, 256 do
    requests[user] = wrk.format("GET", "/", { ["x-user"] = "user-" .. user })
  end
end

request = function()
  turn = turn % 256 + 1
  return requests[turn]
end
