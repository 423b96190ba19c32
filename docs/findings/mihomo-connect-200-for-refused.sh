#!/bin/bash
# mihomo 1.19.2 (the Clash core, a usual HTTPS_PROXY in China); seen 2026-11-27.
# CONNECT to a port that refuses connections.
# Expected: 502 or 503 at once, as from squid or privoxy, and so an error that names the proxy.
# Seen: 200 before anything is dialled. Then it dials for two to four seconds, time and again, and closes. The
# caller sees a TLS handshake that hangs and ends in EOF, as if the far side were slow and its TLS broken, and a
# client that tries the next host only where no connection came about has to count this as one.
set -u
t=$(mktemp -d) || exit 2
trap 'jobs -p | xargs -r kill 2>/dev/null; wait; rm -rf "$t"' EXIT
cd "$t" || exit 2

cat >go.mod <<'MOD'
module proxy

go 1.26.0

require github.com/metacubex/mihomo v1.19.2
MOD
GOPATH=$t/go GOWORK=off GOFLAGS='-modcacherw -mod=mod -trimpath' \
  timeout 900 go build -o mihomo github.com/metacubex/mihomo 2>log ||
  { echo "mihomo cannot be had:"; tail -3 log; exit 2; }
read -r front refused < <(python3 -c '
import random, socket
free = []
for port in random.sample(range(15000, 32000), 50):
    try:
        socket.create_server(("127.0.0.1", port)).close()
        free.append(port)
    except OSError:
        pass
print(*free[:2])')
mkdir home
cat >home/config.yaml <<YAML
port: $front
bind-address: 127.0.0.1
mode: rule
log-level: info
dns: {enable: false}
rules: ["MATCH,DIRECT"]
YAML
timeout 60 ./mihomo -d "$t/home" >mihomo.log 2>&1 &
cat >caller.py <<'PY'
import socket, ssl, sys, time
front, refused = sys.argv[1:]
for _ in range(100):
    try:
        s = socket.create_connection(('127.0.0.1', front), 20)
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit(2)
began = time.monotonic()
s.sendall(f'CONNECT 127.0.0.1:{refused} HTTP/1.1\r\nHost: 127.0.0.1:{refused}\r\n\r\n'.encode())
status = s.recv(4096).split()[1].decode()
answered = time.monotonic() - began
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
try:
    context.wrap_socket(s)
    end = 'TLS'
except (ssl.SSLError, OSError) as e:
    end = type(e).__name__
took = time.monotonic() - began
print(f'CONNECT: {status} after {answered:.2f} s; TLS handshake: {end} after {took:.2f} s')
sys.exit(0 if status == '200' and answered < 0.5 and end != 'TLS' and took > 0.5 else 1)
PY
python3 caller.py "$front" "$refused"
rc=$?
echo "connections refused meanwhile, from its log: $(grep -c 'connection refused' mihomo.log)"
[ "$rc" = 2 ] && { echo "mihomo did not start"; tail -3 mihomo.log; }
exit "$rc"
