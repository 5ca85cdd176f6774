"""Streams between clients and containers: exec, attach and port forwarding, over connections of our own listener.

A connection and the order to serve it come from two sides: `listener` takes up an offer for a client, and the core then
orders the stream of that session, which `streams` brings together with the connection.

| module | what it does |
|---|---|
| `listener` | accepts connections, reads one request from each, and upgrades it when its token opens something |
| `sockets` | one connection as a byte stream that notices when its peer hangs up |
| `streams` | where connections meet the orders that serve them; idle and other limits |
| `client` | a command's client: the protocol of `crio_core.streaming` over a connection |
| `execs` `attaching` `ports` | the three kinds of streams, loaded when the first one is served |
"""
