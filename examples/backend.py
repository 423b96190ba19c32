"""A back end for mini program login. Python 3.9 or later, without packages: python3 backend.py"""

import json
import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, Request

WXOPENID = os.environ.get("WXOPENID_URL") or "http://127.0.0.1:2020"
opener = OpenerDirector()  # unlike urlopen: past any proxy, no redirects, no exception on 4xx and 5xx
opener.add_handler(HTTPHandler())
opener.add_handler(HTTPSHandler())


def ask_wxopenid(code, headers):
    """Return the status and the JSON object to answer with. Below 400 the object has the openid."""
    # headers are those of the mini program's request, with their names in lower case.
    id = headers.get("x-request-id") or str(uuid.uuid4())
    sent = {"Content-Type": "application/json", "Referer": headers.get("referer", ""), "X-Request-Id": id}
    try:  # 8 s in all, between WX_TIMEOUT (5 s) and what openid.js waits (10 s)
        request = Request(f"{WXOPENID}/openid", json.dumps({"code": code}).encode(), sent)
        status, answer = ThreadPoolExecutor(1).submit(post, request).result(timeout=8)
        if not isinstance(answer, dict) or (status < 400 and not answer.get("openid")):
            raise ValueError(f"wxopenid answered {status} without an openid or an error")
    except Exception as err:
        print(id, repr(err), file=sys.stderr, flush=True)
        status, answer = 502, {"error": "wxopenid_unreachable"}
    print(id, status, "ok" if status < 400 else answer.get("error"), flush=True)
    return status, answer


def post(request):
    with opener.open(request, timeout=8) as reply:
        return reply.status, json.load(reply)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        status, answer = 400, {"error": "invalid_request"}
        try:
            left, body = int(self.headers["Content-Length"]), b""
            while left > 0 and (part := self.rfile.read(min(left, 65536))):
                left, body = left - len(part), body or part  # reads on, but keeps no more
            code = json.loads(body)["code"]
            if left == 0 and code and isinstance(code, str):
                status, answer = ask_wxopenid(code, self.headers)
        except Exception:
            pass  # no JSON object
        if status < 400:
            answer = {"token": str(uuid.uuid4())}  # store in your database that it belongs to answer["openid"]
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT") or 3000)), Handler).serve_forever()
