"""A saved policy behind protocols of others, so that programs that know nothing of wmpo can ask it for actions
(docs/serve.md): vla-eval's, for its benchmarks, and LeRobot's asynchronous inference, for its robots."""
