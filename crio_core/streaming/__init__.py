"""The streams of Kubernetes (Exec, Attach, PortForward) over one upgraded connection: bytes in, events out. Pure.

Each side is an object that is fed what the socket gave (`receive`), and gives what the socket should be sent (`take`).
It never holds back what it got: memory is bounded by what its caller has not taken yet, and a caller that stops reading
the socket stops its peer.

| module | what it knows |
|---|---|
| `upgrade` | whether a request may become a stream, and with which protocol |
| `remotecommand` | the server's side of a command: exec and attach |
| `portforward` | the server's side of connections to ports of a pod |
| `client` | the client's side of both |
| `status` | how a command ended, as it is written on the error stream |
| `spdy` `websocket` | the two wires, loaded when the first stream uses them |
"""
