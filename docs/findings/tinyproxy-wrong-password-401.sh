#!/bin/bash
# tinyproxy 1.11.1 (Debian 12), BasicAuth; seen 2026-11-27.
# CONNECT through a proxy that wants a user and a password: with none, with a wrong one, with the right one.
# Expected: 407 and Proxy-Authenticate for both of the first two.
# Seen: 407 for none, but 401 with WWW-Authenticate for a wrong one, which are a web server's words. net/http
# shows only "Unauthorized", so it reads as if WeChat had refused the login. And where the destination refuses the
# connection, the answer is 500, not 502. Known upstream: later versions say 407.
set -u
t=$(mktemp -d) || exit 2
trap 'jobs -p | xargs -r kill 2>/dev/null; wait; rm -rf "$t"' EXIT
cd "$t" || exit 2

p=tinyproxy-bin=1.11.1-2.1+deb12u1
apt-get download "$p" >/dev/null 2>&1 || { echo "$p cannot be had"; exit 2; }
dpkg -x ./*.deb root
read -r front back refused < <(python3 -c '
import random, socket
free = []
for port in random.sample(range(15000, 32000), 50):
    try:
        socket.create_server(("127.0.0.1", port)).close()
        free.append(port)
    except OSError:
        pass
print(*free[:3])')
cat >tinyproxy.conf <<CONF
Port $front
Listen 127.0.0.1
Timeout 10
BasicAuth user right
ConnectPort $back
ConnectPort $refused
CONF
timeout 60 python3 -m http.server --bind 127.0.0.1 "$back" >/dev/null 2>&1 &
timeout 60 root/usr/bin/tinyproxy -d -c tinyproxy.conf >tinyproxy.log 2>&1 &
up() {
  for _ in $(seq 100); do
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  echo "nothing listens on port $1"; exit 2
}
up "$back"
up "$front"

ask() { # what, user and password, port
  curl -s --noproxy '' -m 10 -o /dev/null -D head -p -x "http://${2}127.0.0.1:$front" "http://127.0.0.1:$3/"
  printf '%s: %s, %s\n' "$1" "$(sed -n '1s,HTTP/1.. \(...\).*,\1,p' head)" \
    "$(grep -io '^[a-z]*-authenticate' head || echo 'no authenticate header')"
}
{
  ask 'no password' '' "$back"
  ask 'wrong password' 'user:wrong@' "$back"
  ask 'right password' 'user:right@' "$back"
  ask 'right password, destination refuses' 'user:right@' "$refused"
} | tee seen
[ "$(cat seen)" = "no password: 407, Proxy-Authenticate
wrong password: 401, WWW-Authenticate
right password: 200, no authenticate header
right password, destination refuses: 500, no authenticate header" ]
