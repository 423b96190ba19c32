// Draws a WXML template over a page's data: as much of WXML as the sample uses, and an
// error for the rest.

const TOKEN = /<!--.*?-->|<\/(?<closed>[\w-]+)>|<(?<tag>[\w-]+)(?<attrs>(?:\s+[\w:-]+(?:="[^"]*")?)*)\s*(?<empty>\/?)>|(?<text>[^<]+)/gsy

function parse(source) {
  const root = { children: [] }
  const open = [root]
  TOKEN.lastIndex = 0
  while (TOKEN.lastIndex < source.length) {
    const at = TOKEN.lastIndex
    const match = TOKEN.exec(source)
    if (!match) throw new Error(`WXML: cannot read ${source.slice(at, at + 40)}`)
    const { closed, tag, attrs, empty, text } = match.groups
    const parent = open[open.length - 1]
    if (text) parent.children.push(text)
    if (closed && open.pop().tag !== closed) throw new Error(`WXML: </${closed}> closes nothing`)
    if (tag) {
      const element = { tag, attrs: attributes(attrs), children: [] }
      parent.children.push(element)
      if (!empty) open.push(element)
    }
  }
  if (open.length > 1) throw new Error(`WXML: <${open.pop().tag}> is never closed`)
  return root.children
}

function attributes(source) {
  const attrs = {}
  for (const [, name, value] of source.matchAll(/([\w:-]+)(?:="([^"]*)")?/g)) attrs[name] = value ?? '{{true}}'
  return attrs
}

// evaluate gives the value itself where the whole of it is one {{expression}}, else a
// string. A name that data does not have is an error.
function evaluate(source, data) {
  const expression = code => new Function('data', `with (data) { return (${code}) }`)(data)
  const whole = /^{{((?:(?!}}).)*)}}$/s.exec(source)
  return whole ? expression(whole[1]) : source.replace(/{{(.*?)}}/gs, (_, code) => expression(code))
}

// draw returns the elements and texts that are on the screen.
function draw(nodes, data) {
  const drawn = []
  let taken = true
  for (const node of nodes) {
    if (typeof node === 'string') {
      const text = String(evaluate(node.trim(), data))
      if (text) drawn.push(text)
      continue
    }
    const { 'wx:if': when, 'wx:elif': elseWhen, 'wx:else': otherwise, ...rest } = node.attrs
    if (when !== undefined) taken = false
    if (when ?? elseWhen ?? otherwise) {
      if (taken || !evaluate(when ?? elseWhen ?? otherwise, data)) continue
      taken = true
    }
    const attrs = {}
    for (const name of Object.keys(rest)) {
      if (name.startsWith('wx:')) throw new Error(`WXML: ${name} is not known here`)
      attrs[name] = evaluate(rest[name], data)
    }
    drawn.push({ tag: node.tag, attrs, children: draw(node.children, data) })
  }
  return drawn
}

// texts lists what can be read, from top to bottom.
function texts(drawn) {
  return drawn.flatMap(node => typeof node === 'string' ? node : texts(node.children))
}

// elements lists every element, from top to bottom.
function elements(drawn) {
  return drawn.flatMap(node => typeof node === 'string' ? [] : [node, ...elements(node.children)])
}

module.exports = { parse, draw, texts, elements }
