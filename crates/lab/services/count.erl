%% Counts by name, in a table: `POST /count/NAME` answers with the number.
-module(count).
-export([main/1]).

main([Port]) ->
    ets:new(counts, [named_table, public]),
    {ok, Listener} = gen_tcp:listen(list_to_integer(Port),
                                    [binary, {packet, http_bin}, {active, false}, {reuseaddr, true},
                                     {nodelay, true}, {backlog, 128}]),
    accept(Listener).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> receive go -> serve(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener).

serve(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, {http_request, _, {abs_path, Path}, _}} ->
            headers(Socket),
            Count = ets:update_counter(counts, Path, 1, {Path, 0}),
            Body = [integer_to_list(Count), "\n"],
            ok = gen_tcp:send(Socket, ["HTTP/1.1 200 OK\r\nContent-Length: ",
                                       integer_to_list(iolist_size(Body)), "\r\n\r\n", Body]),
            serve(Socket);
        {error, closed} ->
            ok
    end.

headers(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, http_eoh} -> ok;
        {ok, {http_header, _, _, _, _}} -> headers(Socket)
    end.
