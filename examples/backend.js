// A back end for mini program login. Node.js 18 or later, without packages: node backend.js
const http = require('node:http')
const { randomUUID } = require('node:crypto')

const wxopenid = process.env.WXOPENID_URL || 'http://127.0.0.1:2020'

// askWxopenid returns the status and the JSON object to answer with. Below 400 the object has the openid.
// headers are those of the mini program's request, with their names in lower case.
async function askWxopenid(code, headers) {
  const id = headers['x-request-id'] || randomUUID()
  let status, answer
  try {
    const reply = await fetch(`${wxopenid}/openid`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', Referer: headers.referer ?? '', 'X-Request-Id': id },
      body: JSON.stringify({ code }),
      redirect: 'error',
      signal: AbortSignal.timeout(8000) // between WX_TIMEOUT (5 s) and what openid.js waits (10 s)
    })
    status = reply.status
    answer = await reply.json()
    if (Object(answer) !== answer || Array.isArray(answer) || (status < 400 && !answer.openid)) {
      throw new Error(`wxopenid answered ${status} without an openid or an error`)
    }
  } catch (err) {
    console.error(id, String(err.cause ?? err), err.cause?.code ?? '')
    status = 502
    answer = { error: 'wxopenid_unreachable' }
  }
  console.log(id, status, status < 400 ? 'ok' : answer.error)
  return [status, answer]
}

http.createServer(async (req, res) => {
  let body = ''
  let status = 400
  let answer = { error: 'invalid_request' }
  try {
    for await (const chunk of req) if (body.length < 65536) body += chunk // reads on, but keeps no more
    const { code } = JSON.parse(body)
    if (code && typeof code === 'string') [status, answer] = await askWxopenid(code, req.headers)
  } catch {} // no JSON
  if (status < 400) {
    answer = { token: randomUUID() } // store in your database that it belongs to answer.openid
  }
  res.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(answer))
}).listen(process.env.PORT || 3000, '127.0.0.1')
