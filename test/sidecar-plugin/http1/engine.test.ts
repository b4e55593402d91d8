import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import fc from 'fast-check'
import type { Layer } from '../../../sidecar-plugin/src/layer.ts'
import { RawCaller } from '../fakes.ts'
import { eventually, rawService, startWire } from '../wire.ts'
import { CORPUS, MALFORMED } from './corpus.ts'

type Options = NonNullable<Parameters<typeof startWire>[1]>

/** A wire to a service on bare sockets, with everything that it hears. */
async function start(t: TestContext, onData: (socket: Socket, text: string) => void, options: Options = {}) {
  const heard = { sockets: [] as Socket[], text: '' }
  const service = await rawService(t, (socket) => {
    heard.sockets.push(socket)
    socket.on('data', (chunk) => {
      heard.text += chunk.toString('latin1')
      onData(socket, chunk.toString('latin1'))
    })
  })
  const wire = await startWire(() => {}, { service, ...options })
  t.after(() => wire.stop())
  return { ...wire, heard }
}

function caller(t: TestContext, port: number, options: { allowHalfOpen?: boolean } = {}): RawCaller {
  const started = new RawCaller(port, options)
  t.after(() => started.socket.destroy())
  return started
}

const GET = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'

/** Answers each request of a text that holds whole ones without content. */
function answerEach(answer: (target: string) => string) {
  return (socket: Socket, text: string) => {
    for (const [, target] of text.matchAll(/^[A-Z-]+ (\S+) HTTP/gm)) socket.write(answer(target!), 'latin1')
  }
}

describe('RFC 9112/9.3.2: pipelined requests', () => {
  test('are answered in their order, one after the other', async (t) => {
    const waiting: (() => void)[] = []
    const { port } = await start(t, (socket, text) => {
      const target = /^GET (\S+)/.exec(text)![1]!
      waiting.push(() => socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${target.length}\r\n\r\n${target}`))
    })
    const asked = caller(t, port)
    asked.send(['/first', '/second', '/third'].map((path) => `GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`).join(''))
    for (const path of ['/first', '/second', '/third']) {
      await eventually(`${path} arrives`, () => waiting.length === 1)
      waiting.pop()!()
      await asked.until(new RegExp(`${path}$`))
    }
    assert.deepEqual(asked.text.match(/\/(first|second|third)/g), ['/first', '/second', '/third'])
  })

  test('with content of every kind do not mix', async (t) => {
    const { port, heard } = await start(
      t,
      answerEach(() => OK),
    )
    const asked = caller(t, port)
    const put = 'PUT /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n'
    const post = 'POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc'
    asked.send(`${post}${put}${GET}${post}`)
    await asked.until(/(?:ok[\s\S]*){4}/)
    assert.deepEqual(heard.text.match(/(?:POST|PUT|GET) \S+/g), ['POST /1', 'PUT /2', 'GET /', 'POST /1'])
    assert.match(heard.text, /Content-Length: 3\r\n\r\nabcPUT/)
    assert.match(heard.text, /transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET/)
  })

  test('are answered even when their caller has closed its half', async (t) => {
    const { port } = await start(
      t,
      answerEach(() => OK),
    )
    const asked = caller(t, port, { allowHalfOpen: true })
    asked.send(GET + GET + GET)
    asked.socket.end()
    await asked.closed
    assert.equal(asked.text.match(/ok/g)?.length, 3)
    assert.equal(asked.error, undefined)
  })

  test('hold their caller back while the first waits, instead of filling memory', async (t) => {
    const { port } = await start(t, () => {})
    const asked = caller(t, port)
    const flood = Buffer.from(GET.repeat(10_000))
    let sent = 0
    let quietTurns = 0
    await eventually('nothing more is taken', () => {
      if (asked.socket.writableLength < flood.length) {
        asked.socket.write(flood)
        sent += flood.length
        quietTurns = 0
      } else quietTurns++
      return quietTurns > 1_000
    })
    assert(sent < 16_000_000, `${sent} bytes were taken`)
  })
})

describe('RFC 9112/7.1.2: trailers', () => {
  test('pass both ways, and are no fields of the head', async (t) => {
    const answer =
      'HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n'
    const { port, heard } = await start(t, (socket, text) => void (text.includes('0\r\n') && socket.write(answer)))
    const asked = caller(t, port)
    const head = 'POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-In\r\nTransfer-Encoding: chunked\r\n\r\n'
    asked.send(`${head}3;ext=1\r\nabc\r\n0\r\nX-In: 2\r\n\r\n`)
    const text = await asked.until(/X-Sum: 1\r\n\r\n/)
    assert.match(text, /\r\nTrailer: X-Sum\r\n[\s\S]*\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n$/)
    assert.match(heard.text, /\r\nTrailer: X-In\r\n[\s\S]*te: trailers\r\n\r\n3\r\nabc\r\n0\r\nX-In: 2\r\n\r\n$/)
  })
})

describe('RFC 9110/15.2: answers before the answer', () => {
  test('are passed on, as many as there are', async (t) => {
    const { port } = await start(t, (socket) => {
      socket.write('HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n')
      socket.write(OK)
    })
    const text = await caller(t, port).send(GET).until(/ok$/)
    assert.deepEqual(text.match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 103', 'HTTP/1.1 102', 'HTTP/1.1 200'])
    assert.match(text, /103 Early Hints\r\nLink: <\/a>\r\n\r\n/)
  })

  test('stay behind for a caller of HTTP/1.0', async (t) => {
    const { port } = await start(t, (socket) => void socket.write(`HTTP/1.1 103 Early Hints\r\n\r\n${OK}`))
    const asked = caller(t, port).send('GET / HTTP/1.0\r\nHost: a\r\n\r\n')
    await asked.closed
    assert.match(asked.text, /^HTTP\/1\.1 200 /)
  })
})

describe('RFC 9110/15.2: answers before the answer without end', () => {
  const hint = (bytes: number) => `HTTP/1.1 103 Early Hints\r\nLink: ${'x'.repeat(bytes)}\r\n\r\n`

  test('are no answer', async (t) => {
    const { port, endings } = await start(t, (socket) => {
      const flood = () => {
        while (!socket.destroyed && socket.write(hint(1)));
      }
      socket.on('drain', flood)
      flood()
    })
    const text = await caller(t, port).send(GET).until(/\}$/)
    assert.match(text, /HTTP\/1\.1 502 [^]*upstream_protocol/)
    assert(text.match(/HTTP\/1\.1 103/g)!.length <= 1_000)
    await eventually('it ends', () => endings.length === 1)
  })

  test('are not kept for a caller who does not take them', async (t) => {
    const [times, bytes] = [900, 50_000]
    const { port, exchanges } = await start(t, (socket) => {
      for (let i = 0; i < times; i++) socket.write(hint(bytes))
      socket.write(OK)
    })
    const asked = connect(port, '127.0.0.1').pause()
    t.after(() => asked.destroy())
    asked.write(GET)
    await eventually('it arrives', () => exchanges.length === 1)
    const { caller: to } = exchanges[0]!
    let informed = 0
    const inform = to!.inform.bind(to)
    to!.inform = (head) => {
      informed++
      inform(head)
    }
    await eventually('all are read', () => informed > times - 5)
    let last = ''
    asked.on('data', (chunk) => (last = chunk.toString('latin1'))).resume()
    await eventually('the answer arrives', () => last.endsWith('ok'))
    assert(asked.bytesRead < (times * bytes) / 2, `${asked.bytesRead} bytes were kept`)
  })
})

describe('RFC 9110/10.1.1: an expectation', () => {
  test('travels to the service, whose word starts the content', async (t) => {
    const { port, heard } = await start(t, (socket, text) => {
      if (text.includes('Expect')) socket.write('HTTP/1.1 100 Continue\r\n\r\n')
      if (text.endsWith('abc')) socket.write(OK)
    })
    const asked = caller(t, port).send(
      'POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n',
    )
    await asked.until(/100 Continue\r\n\r\n$/)
    assert.match(heard.text, /\r\n\r\n$/)
    asked.send('abc')
    assert.match(await asked.until(/ok$/), /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 OK\r\n/)
  })

  test('that is refused closes the connection, since nobody knows whether the content comes', async (t) => {
    const { port } = await start(t, (socket) => void socket.write('HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n'))
    const asked = caller(t, port).send(
      'POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n',
    )
    await asked.until(/413 No[\s\S]*\r\n\r\n/)
    assert.match(asked.text, /connection: close\r\n/)
    asked.send('abc')
    asked.socket.end()
    await asked.closed
    assert.equal(asked.text.match(/HTTP/g)?.length, 1)
  })

  test('that is refused once the content is on its way leaves the connection as it is', async (t) => {
    const { port, heard } = await start(t, (socket, text) => {
      if (text.endsWith('a')) socket.write('HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n')
      else if (text.startsWith('GET')) socket.write(OK)
    })
    const asked = caller(t, port).send(
      'POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\na',
    )
    await asked.until(/413 No[\s\S]*\r\n\r\n/)
    assert.doesNotMatch(asked.text, /connection: close/)
    asked.send(`bc${GET}`)
    await asked.until(/ok$/)
    assert.equal(heard.sockets.length, 2)
  })
})

describe('RFC 9110/7.8: a tunnel', () => {
  const upgrade = 'GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n'
  const switched = 'HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX: 1\r\n\r\n'

  test('opens with 101, passes both ways what comes at once, and closes in halves', async (t) => {
    let ended = false
    const { port, heard, endings } = await start(t, (socket, text) => {
      if (text.includes('HTTP/1.1')) socket.write(`${switched}early`)
      else socket.write(`<${text}>`)
      socket.on('end', () => (ended = true))
    })
    const asked = caller(t, port, { allowHalfOpen: true })
    asked.send(`${upgrade}first`)
    await asked.until(/early[\s\S]*<first>/)
    assert.match(heard.text, /connection: upgrade\r\nupgrade: websocket\r\n\r\nfirst$/)
    assert.match(asked.text, /^HTTP\/1\.1 101 [^\r]*\r\nX: 1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n/)
    asked.socket.end()
    await eventually('the service hears the end', () => ended)
    heard.sockets[0]!.end('last words')
    await asked.closed
    assert.match(asked.text, /last words$/)
    assert.equal(asked.error, undefined)
    await eventually('it ends', () => endings.length === 1)
    assert.equal(endings[0]!.error, undefined)
  })

  test('forwards nothing before the service has agreed', async (t) => {
    let agree = () => {}
    const { port, heard } = await start(t, (socket, text) => {
      if (text.includes('HTTP/1.1')) agree = () => void socket.write(switched)
    })
    const asked = caller(t, port).send(upgrade)
    await eventually('the request arrives', () => heard.text.endsWith('\r\n\r\n'))
    asked.send(GET)
    const others = caller(t, port).send(GET)
    await eventually('another request arrives', () => heard.sockets.length === 2)
    assert(!heard.text.slice(0, -200).includes('GET / HTTP/1.1\r\nHost: a\r\n\r\nGET'))
    assert.equal(heard.text.match(/upgrade: websocket/g)?.length, 1)
    agree()
    await eventually('it is forwarded as it is', () => heard.text.endsWith(GET))
    others.socket.destroy()
  })

  test('that is refused leaves requests as they are', async (t) => {
    const { port } = await start(
      t,
      answerEach(() => OK),
    )
    const asked = caller(t, port).send(upgrade + GET)
    const text = await asked.until(/ok[\s\S]*ok$/)
    assert.deepEqual(text.match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 200', 'HTTP/1.1 200'])
  })

  test('that nobody asked for is an error of the service', async (t) => {
    const { port } = await start(t, (socket) => void socket.write(switched))
    assert.match(await caller(t, port).send(GET).until(/\}$/), /^HTTP\/1\.1 502 [\s\S]*upstream_protocol/)
  })

  test('to HTTP/2 in clear text is never opened: its requests would pass unseen', async (t) => {
    const { port, heard } = await start(
      t,
      answerEach(() => OK),
    )
    await caller(t, port).send(upgrade.replace('websocket', 'h2c')).until(/ok$/)
    assert.doesNotMatch(heard.text, /upgrade/i)
  })

  test('that breaks on one side breaks on the other', async (t) => {
    const { port, heard } = await start(t, (socket) => void socket.write(switched))
    const asked = caller(t, port).send(upgrade)
    await asked.until(/101/)
    heard.sockets[0]!.resetAndDestroy()
    await asked.closed
    assert.notEqual(asked.error, undefined)

    const other = caller(t, port).send(upgrade)
    await other.until(/101/)
    const closed = new Promise((resolve) => heard.sockets[1]!.once('close', resolve))
    other.socket.resetAndDestroy()
    await closed
  })

  test('RFC 9110/9.3.6: opens with a 2xx to CONNECT, and with nothing else', async (t) => {
    let status = '403 No'
    const { port, heard } = await start(t, (socket, text) => {
      if (text.startsWith('CONNECT'))
        socket.write(`HTTP/1.1 ${status}\r\n${status === '200 OK' ? '' : 'Content-Length: 0\r\n'}\r\n`)
      else socket.write(`<${text}>`)
    })
    await caller(t, port)
      .send('CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n')
      .until(/403 No[\s\S]*\r\n\r\n/)
    status = '200 OK'
    const asked = caller(t, port).send('CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\nhello')
    assert.match(await asked.until(/<hello>/), /^HTTP\/1\.1 200 OK\r\n\r\n<hello>$/)
    assert.match(heard.text, /^CONNECT b:80 HTTP\/1\.1\r\n/)
  })
})

describe('RFC 9110/9.3.6: CONNECT with content', () => {
  for (const framing of ['Content-Length: 3', 'Transfer-Encoding: chunked'])
    test(`framed by ${framing} is refused, and none of it reaches a service`, async (t) => {
      const { port, heard } = await start(t, (socket) => void socket.write('HTTP/1.1 200 OK\r\n\r\n'))
      const asked = caller(t, port).send(`CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n${framing}\r\n\r\n`)
      await asked.closed
      assert.match(asked.text, /^HTTP\/1\.1 400 /)
      assert.equal(heard.text, '')
    })
})

describe('RFC 9112/7.1: content in chunks that is there at once, and small', () => {
  const CHUNKS = '1\r\no\r\n1;x\r\nk\r\n0\r\n\r\n'

  test('of an answer goes on in one piece with its head, so that no end of a sidecar cuts it there', async (t) => {
    const { port } = await start(
      t,
      answerEach(() => `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${CHUNKS}`),
    )
    const asked = caller(t, port)
    const pieces: string[] = []
    asked.socket.on('data', (piece) => pieces.push(piece.toString('latin1')))
    for (let calls = 1; calls <= 20; calls++) {
      asked.send(GET)
      await asked.until(new RegExp(`(?:ok[^]*){${calls}}$`))
      assert.equal(pieces.length, calls)
    }
    assert.match(pieces.at(-1)!, /\r\ncontent-length: 2\r\n(?:.+\r\n)*\r\nok$/)
    assert.doesNotMatch(asked.text, /transfer-encoding/i)
  })

  test('of a request too', async (t) => {
    const { port, heard } = await start(
      t,
      answerEach(() => OK),
    )
    await caller(t, port).send(`POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n${CHUNKS}`).until(/ok$/)
    assert.match(heard.text, /\r\ncontent-length: 2\r\n(?:.+\r\n)*\r\nok$/)
    assert.doesNotMatch(heard.text, /transfer-encoding/i)
  })

  test('is the same content when it comes in two parts, wherever it is cut', async (t) => {
    const answer = `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${CHUNKS}`
    const { port, heard } = await start(t, (socket, text) => {
      const cut = Number(/^GET \/(\d+)/.exec(text)![1])
      socket.setNoDelay(true).write(answer.slice(0, cut), () => setImmediate(() => socket.write(answer.slice(cut))))
    })
    for (let cut = 1; cut < answer.length; cut++) {
      const asked = caller(t, port).send(`GET /${cut} HTTP/1.1\r\nHost: a\r\n\r\n`)
      await asked.until(/\r\n\r\n(?:ok|[^]*0\r\n\r\n)$/)
      const [, content] = /\r\n\r\n([^]*)$/.exec(asked.text)!
      assert.equal(content!.replaceAll(/\d\r\n(.*?)\r\n/g, '$1'), 'ok')
    }
    assert.equal(heard.sockets.length, 1)
  })

  for (const [what, chunks] of [
    ['a chunk that is longer than its size', '1\r\nok\r\n0\r\n\r\n'],
    ['a size that is no number', 'x\r\nok\r\n0\r\n\r\n'],
  ] as const)
    test(`with ${what} is no answer`, async (t) => {
      const { port } = await start(
        t,
        answerEach(() => `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunks}`),
      )
      const asked = caller(t, port).send(GET)
      await asked.until(/upstream_protocol[^]*\r\n\r\n[^]+/)
      assert.match(asked.text, /^HTTP\/1.1 502 /)
    })
})

describe('RFC 9112/6.3: content that ends with its connection', () => {
  test('is whole when that closes', async (t) => {
    const { port } = await start(t, (socket) => void socket.end('HTTP/1.1 200 OK\r\n\r\nto the end'))
    const asked = caller(t, port).send(GET)
    await asked.until(/0\r\n\r\n$/)
    assert.match(asked.text, /transfer-encoding: chunked\r\n\r\na\r\nto the end\r\n0\r\n\r\n$/)
  })

  test('is cut off by a reset, and so is its caller', async (t) => {
    const { port, heard } = await start(t, (socket) => void socket.write('HTTP/1.1 200 OK\r\n\r\nto the'))
    const asked = caller(t, port).send('GET / HTTP/1.0\r\nHost: a\r\n\r\n')
    await asked.until(/to the/)
    heard.sockets[0]!.resetAndDestroy()
    await asked.closed
    assert.notEqual(asked.error, undefined)
  })
})

describe('RFC 9112/9.3: a connection', () => {
  test('of HTTP/1.0 goes on where both sides want it', async (t) => {
    const { port } = await start(
      t,
      answerEach(() => OK),
    )
    const asked = caller(t, port)
    for (let i = 1; i <= 2; i++) {
      asked.send('GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n')
      await asked.until(new RegExp(`(?:ok[\\s\\S]*){${i}}`))
    }
    assert.match(asked.text, /connection: keep-alive/)
  })

  test('goes on after an answer that came before its request’s end, once that has come', async (t) => {
    const { port } = await start(
      t,
      answerEach(() => OK),
    )
    const asked = caller(t, port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc')
    await asked.until(/ok$/)
    asked.send(`def${GET}`)
    await asked.until(/ok[\s\S]*ok$/)
  })

  test('is closed when the rest of such a request does not come', async (t) => {
    const { port } = await start(
      t,
      answerEach(() => OK),
      { listener: { lingerMs: 100 } },
    )
    const asked = caller(t, port).send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc')
    await asked.closed
    assert.match(asked.text, /ok$/)
  })

  test('without a request is closed in time', async (t) => {
    const { port } = await start(
      t,
      answerEach(() => OK),
      { listener: { keepAliveMs: 100 } },
    )
    await caller(t, port).closed
    const asked = caller(t, port).send(GET)
    await asked.closed
    assert.match(asked.text, /ok$/)
  })

  test('beyond the limit is refused, and those within it are served', async (t) => {
    const { port, listener } = await start(
      t,
      answerEach(() => OK),
      { listener: { connections: 1 } },
    )
    const first = caller(t, port).send(GET)
    await first.until(/ok$/)
    await caller(t, port).closed
    assert.equal(listener.refused, 1)
    await first.send(GET).until(/ok[\s\S]*ok$/)
  })
})

describe('what is malformed', () => {
  for (const item of MALFORMED)
    test(`RFC ${item.rule}: ${item.name}, never becomes a request of its own`, async (t) => {
      const { port, heard } = await start(
        t,
        answerEach(() => OK),
      )
      const asked = caller(t, port)
      asked.send(item.bytes)
      if (item.fault === undefined) await asked.until(new RegExp(`(?:ok[\\s\\S]*){${item.targets!.length}}`))
      else {
        await asked.closed
        const statuses = asked.text.match(/HTTP\/1\.1 \d+/g)
        // Of a request whose content is malformed, the service may have heard the beginning, and answered it.
        const isContent = item.fault === 'chunk' || item.fault === 'trailer' || item.rule === '9112/7.1.2'
        if (!isContent) assert.match(statuses!.at(-1)!, / (400|408|417|431|501|505)$/)
      }
      const requests = heard.text.match(/^[A-Z]+ \S+ HTTP/gm) ?? []
      assert(requests.length <= 1 + (item.targets?.length ?? 0))
      assert.doesNotMatch(heard.text, item.fault === undefined ? /^$/ : /hidden/)
    })

  test('of an answer never reaches the caller, wherever it is cut', async (t) => {
    const answers = [
      'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n',
      'HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc',
      'HTTP/1.1 200 OK\r\nX : a\r\n\r\n',
      'HTTP/1.1 200 OK\nContent-Length: 0\n\n',
    ]
    let next = 0
    const { port } = await start(t, (socket) => {
      const answer = answers[Math.floor(next / 10)]!
      const at = 1 + (next++ % 10) * 4
      socket.write(answer.slice(0, at))
      setImmediate(() => socket.write(answer.slice(at)))
    })
    const asked = caller(t, port)
    for (let i = 1; i <= answers.length * 10; i++) {
      asked.text = ''
      assert.match(await asked.send(GET).until(/\}$/), /^HTTP\/1\.1 502 [\s\S]*upstream_protocol/)
    }
  })
})

test('every request of the corpus is served alike wherever its bytes are cut', async (t) => {
  const { port } = await start(
    t,
    answerEach(() => OK),
  )
  const statuses = async (pieces: readonly string[]) => {
    const asked = new RawCaller(port)
    for (const piece of pieces) {
      asked.send(piece)
      await new Promise((resolve) => setImmediate(resolve))
    }
    asked.socket.end()
    await asked.closed
    return asked.text.match(/HTTP\/1\.1 \d+/g)
  }
  for (const { name, bytes } of CORPUS.filter((item) => item.bytes.length < 300 && !item.bytes.includes('chunked'))) {
    const whole = await statuses([bytes])
    for (let at = 1; at < bytes.length; at += 7)
      assert.deepEqual(await statuses([bytes.slice(0, at), bytes.slice(at)]), whole, `${name}, cut at ${at}`)
  }
})

/** Bytes that differ between connections and along each of them. */
function contentOf(seed: number, bytes: number): Buffer {
  const content = Buffer.alloc(bytes)
  const words = new Uint32Array(content.buffer, content.byteOffset, bytes / 4)
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 2_654_435_761) + seed
  return content
}

describe('content that waits for a caller who does not read stays what it was, while others are served', () => {
  // More than the system takes into its own buffers.
  const BYTES = 14_000_000
  for (const [what, pieceBytes] of [
    ['as fast as it can be', BYTES],
    ['in small pieces', 20_000],
  ] as const)
    test(`sent ${what}`, async (t) => {
      let written = 0
      const { port } = await start(t, (socket, text) => {
        const seed = Number(/^GET \/(\d+) /.exec(text)![1]!)
        const content = contentOf(seed, BYTES)
        socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${BYTES}\r\n\r\n`)
        let at = 0
        const write = () => {
          while (at < BYTES) {
            const isGone = socket.write(content.subarray(at, (at += pieceBytes)))
            written += pieceBytes
            if (!isGone) return void socket.once('drain', write)
          }
        }
        write()
      })
      const asked = Array.from({ length: 4 }, (_, seed) => {
        const socket = connect(port, '127.0.0.1')
        t.after(() => socket.destroy())
        socket.write(`GET /${seed} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`)
        return socket
      })
      let last = -1
      let quietTurns = 0
      await eventually('everything stands still', () => {
        quietTurns = written === last && written > 0 ? quietTurns + 1 : 0
        last = written
        return quietTurns > 500
      })
      // What passes now must not be written over what waits.
      await caller(t, port).send('GET /99 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n').closed
      for (const [seed, socket] of asked.entries()) {
        const received: Buffer[] = []
        socket.on('data', (chunk: Buffer) => received.push(chunk))
        await new Promise((resolve) => socket.once('close', resolve))
        const whole = Buffer.concat(received)
        assert(whole.subarray(whole.indexOf('\r\n\r\n') + 4).equals(contentOf(seed, BYTES)), `of caller ${seed}`)
      }
    })
})

test('uploads to a service that reads slowly stay that of each', async (t) => {
  const BYTES = 14_000_000
  const received = new Map<string, Buffer[]>()
  const sockets: Socket[] = []
  const service = await rawService(t, (socket) => {
    let name: string | undefined
    let bytes = 0
    sockets.push(socket)
    socket.on('data', (chunk: Buffer) => {
      const isFirst = name === undefined
      name ??= /^POST (\S+)/.exec(chunk.toString('latin1'))![1]!
      const content = isFirst ? chunk.subarray(chunk.indexOf('\r\n\r\n') + 4) : chunk
      if (isFirst) received.set(name, [])
      received.get(name)!.push(content)
      bytes += content.length
      if (bytes === BYTES) socket.end(OK)
    })
    socket.pause()
  })
  const wire = await startWire(() => {}, { service })
  t.after(() => wire.stop())
  const asked = Array.from({ length: 3 }, (_, i) => {
    const started = caller(t, wire.port)
    started.send(`POST /${i} HTTP/1.1\r\nHost: a\r\nContent-Length: ${BYTES}\r\n\r\n`)
    started.socket.write(contentOf(i, BYTES))
    return started
  })
  let last = -1
  let quietTurns = 0
  await eventually('everything stands still', () => {
    const arrived = wire.exchanges.reduce((sum, exchange) => sum + exchange.bytesIn, 0)
    quietTurns = arrived === last && arrived > 0 ? quietTurns + 1 : 0
    last = arrived
    return quietTurns > 500
  })
  for (const socket of sockets) socket.resume()
  for (const [i, one] of asked.entries()) {
    await one.until(/ok$/)
    assert(Buffer.concat(received.get(`/${i}`)!).equals(contentOf(i, BYTES)), `of caller ${i}`)
  }
})

test('what a layer puts into a head cannot become a head of its own', async (t) => {
  const splits: Layer = (inner) => async (exchange) => {
    const reply = await inner(exchange)
    return { ...reply, headers: reply.headers.with('x-policy', 'a\r\nSet-Cookie: b') }
  }
  const { port } = await start(
    t,
    answerEach(() => OK),
    { layers: [splits] },
  )
  const text = await caller(t, port).send(GET).until(/\}$/)
  assert.match(text, /^HTTP\/1\.1 500 [\s\S]*internal_error/)
  assert.doesNotMatch(text, /Set-Cookie/)
})

test('whatever a service answers, its caller is told something, and the next one is served', async (t) => {
  const part = fc.oneof(
    fc.constantFrom(
      ...['HTTP/1.1 200 OK\r\n', 'HTTP/1.0 200\r\n', 'HTTP/1.1 100 Go on\r\n\r\n', 'HTTP/1.1 101 Switch\r\n'],
      ...['HTTP/1.1 204 None\r\n', 'HTTP/1.1 304 Same\r\n', 'HTTP/1.1 999 Odd\r\n', '\r\n', '\n', '\r', OK],
      ...['Content-Length: 2\r\n', 'Content-Length: 9\r\n', 'Transfer-Encoding: chunked\r\n', 'Connection: close\r\n'],
      ...['2\r\nok\r\n', '0\r\n\r\n', '0\r\nX: a\r\n\r\n', 'fffff\r\n', 'Upgrade: x\r\nConnection: upgrade\r\n'],
    ),
    fc.string({ unit: 'binary', maxLength: 30 }),
  )
  let answer = ''
  const { port } = await start(t, (socket, text) => {
    if (text.startsWith('GET /rough ')) socket.end(answer, 'latin1')
    else socket.write(OK)
  })
  await fc.assert(
    fc.asyncProperty(fc.array(part, { maxLength: 8 }), async (parts) => {
      answer = Buffer.from(parts.join(''), 'latin1').toString('latin1')
      const rough = new RawCaller(port).send('GET /rough HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
      await rough.closed
      assert(rough.error !== undefined || rough.text.startsWith('HTTP/1.1 '), JSON.stringify(rough.text))
      const next = new RawCaller(port).send('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
      await next.closed
      assert.match(next.text, /^HTTP\/1\.1 200 OK[\s\S]*ok$/)
    }),
    { numRuns: 300, seed: 3 },
  )
})
