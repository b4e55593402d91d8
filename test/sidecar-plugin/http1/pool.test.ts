import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import type { SidecarError } from '../../../sidecar-plugin/src/errors.ts'
import type { Call, Failure } from '../../../sidecar-plugin/src/http1/client-connection.ts'
import { Pool, type PoolLimits } from '../../../sidecar-plugin/src/http1/pool.ts'
import { DEFAULT_FORWARD_LIMITS } from '../../../sidecar-plugin/src/forward.ts'
import { Whole, type Body } from '../../../sidecar-plugin/src/layer.ts'
import { RawCaller } from '../fakes.ts'
import { eventually, rawService, startWire } from '../wire.ts'

const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'

interface Made extends Call {
  readonly failures: Failure[]
  isEnded: boolean
  body: Body | undefined
  answer: Body | undefined
  abort: (error: SidecarError) => void
}

function callOf(target = '/'): Made {
  const call: Made = {
    method: 'GET',
    head: `GET ${target} HTTP/1.1\r\nHost: a\r\n\r\n`,
    body: undefined,
    upgrade: undefined,
    answer: undefined,
    failures: [],
    isEnded: false,
    abort: () => {},
    sentOn: (abort) => (call.abort = abort),
    informed() {},
    answered: (_head, body) => (call.answer = body),
    failed: (failure) => call.failures.push(failure),
    ended: () => (call.isEnded = true),
  }
  return call
}

async function start(t: TestContext, onData: (socket: Socket, text: string) => void, limits: Partial<PoolLimits> = {}) {
  const sockets: Socket[] = []
  const { port } = await rawService(t, (socket) => {
    sockets.push(socket)
    socket.on('end', () => socket.end())
    socket.on('data', (chunk) => onData(socket, chunk.toString('latin1')))
  })
  const now = { ms: 0 }
  const pool = new Pool({ host: '127.0.0.1', port }, { ...DEFAULT_FORWARD_LIMITS, ...limits }, now)
  t.after(() => pool.close())
  const send = async (target?: string) => {
    const call = callOf(target)
    assert(pool.send(call))
    await eventually('it ends', () => call.isEnded || call.failures.length > 0)
    return call
  }
  return { pool, now, sockets, send }
}

describe('a connection', () => {
  test('serves one request after the other', async (t) => {
    const { pool, sockets, send } = await start(t, (socket) => void socket.write(OK))
    for (let i = 0; i < 3; i++) assert.deepEqual((await send()).answer, Whole.of('ok'))
    assert.deepEqual([sockets.length, pool.idle, pool.inFlight], [1, 1, 0])
  })

  test('that was used last is used next, so that the others grow old', async (t) => {
    const waiting: (() => void)[] = []
    const { pool, now, sockets } = await start(t, (socket) => waiting.push(() => void socket.write(OK)))
    const calls = [callOf(), callOf(), callOf()]
    for (const call of calls) pool.send(call)
    await eventually('all have arrived', () => waiting.length === 3)
    for (const answer of waiting.splice(0)) answer()
    await eventually('all are answered', () => calls.every((call) => call.isEnded))
    for (now.ms = 1_000; now.ms <= 4_000; now.ms += 1_000) {
      const call = callOf()
      pool.send(call)
      await eventually('it arrives', () => waiting.length === 1)
      waiting.pop()!()
      await eventually('it is answered', () => call.isEnded)
      pool.check()
    }
    await eventually('the others are closed', () => pool.size === 1)
    assert.equal(sockets.length, 3)
  })

  test('whose server speaks without being asked is never used again', async (t) => {
    const { pool, sockets, send } = await start(t, (socket) => void socket.write(OK))
    await send()
    sockets[0]!.write('HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison')
    await eventually('it is closed', () => pool.size === 0)
    assert.deepEqual((await send()).answer, Whole.of('ok'))
    assert.equal(sockets.length, 2)
  })

  test('on which more comes than was asked for answers no second request', async (t) => {
    const { sockets, send } = await start(
      t,
      (socket) => void socket.write(`${OK}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison`),
    )
    for (let i = 1; i <= 3; i++) {
      assert.deepEqual((await send()).answer, Whole.of('ok'))
      assert.equal(sockets.length, i)
    }
  })

  describe('RFC 9112/6.3: on which bytes follow the content of an answer', () => {
    const answers = {
      'in chunks': ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'],
      'that comes in two reads': ['HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no', 'k'],
      'that is large': [`HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n${'x'.repeat(20_000)}`],
    }
    const poison = 'HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison'

    for (const [name, [first, last]] of Object.entries(answers)) {
      /** A pool, and a call whose answer is followed by the excess in the read with its end. */
      const startEvil = async (t: TestContext, excess: string, limits: Partial<PoolLimits> = {}) => {
        const evil = callOf('/evil')
        const started = await start(
          t,
          (socket, text) => {
            if (!text.includes('/evil')) socket.write(OK)
            else socket.write(last === undefined ? first + excess : first!)
          },
          limits,
        )
        evil.answered = (_head, body) => {
          if (body && !(body instanceof Whole)) body.pour({ write: () => true, end() {}, fail() {} })
          if (last !== undefined) started.sockets[0]!.write(last + excess)
        }
        started.pool.send(evil)
        return { evil, ...started }
      }

      test(`${name} is never used again`, async (t) => {
        const { evil, pool, sockets, send } = await startEvil(t, 'H')
        await eventually('it ends', () => evil.isEnded)
        assert.equal(pool.idle, 0)
        assert.deepEqual((await send()).answer, Whole.of('ok'))
        assert.equal(sockets.length, 2)
      })

      test(`${name} does not answer a request that waits`, async (t) => {
        const { evil, pool, sockets } = await startEvil(t, poison, { connections: 1 })
        const next = callOf('/next')
        pool.send(next)
        await eventually('both end', () => evil.isEnded && next.isEnded)
        assert.deepEqual(next.answer, Whole.of('ok'))
        assert.equal(sockets.length, 2)
      })
    }
  })

  test('that its server said it would close is not used again', async (t) => {
    const { sockets, send } = await start(
      t,
      (socket) => void socket.write('HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok'),
    )
    await send()
    await send()
    assert.equal(sockets.length, 2)
  })

  test('is used for no longer than its server says it keeps it', async (t) => {
    const { now, sockets, send } = await start(
      t,
      (socket) => void socket.write('HTTP/1.1 200 OK\r\nKeep-Alive: timeout=3\r\nContent-Length: 2\r\n\r\nok'),
    )
    await send()
    now.ms += 1_900
    await send()
    assert.equal(sockets.length, 1)
    now.ms += 2_000
    await send()
    assert.equal(sockets.length, 2)
  })

  test('is used for less long than one that its server closed was idle', async (t) => {
    const { pool, now, sockets, send } = await start(t, (socket) => void socket.write(OK))
    await send()
    now.ms += 3_000
    sockets[0]!.end()
    await eventually('it is closed', () => pool.size === 0)
    await send()
    now.ms += 1_900
    await send()
    assert.equal(sockets.length, 2, 'younger than that it is used')
    now.ms += 2_000
    await send()
    assert.equal(sockets.length, 3, 'nearly as old, it is not')
    now.ms += 60_000
    await send()
    now.ms += 3_900
    await send()
    assert.equal(sockets.length, 4, 'what was learned is forgotten')
  })
})

describe('bounds', () => {
  test('of connections make requests wait in order, and of those that wait refuse them', async (t) => {
    const waiting: (() => void)[] = []
    const seen: string[] = []
    const { pool } = await start(
      t,
      (socket, text) => {
        seen.push(text.split(' ')[1]!)
        waiting.push(() => void socket.write(OK))
      },
      { connections: 1, pending: 2 },
    )
    const calls = ['/1', '/2', '/3', '/4'].map((target) => callOf(target))
    assert.deepEqual(
      calls.map((call) => pool.send(call)),
      [true, true, true, false],
    )
    assert.equal(pool.inFlight, 3)
    assert.equal(pool.withdraw(calls[1]!), true)
    for (const call of [calls[0]!, calls[2]!]) {
      await eventually('it arrives', () => waiting.length === 1)
      waiting.pop()!()
      await eventually('it is answered', () => call.isEnded)
    }
    assert.deepEqual(seen, ['/1', '/3'])
  })

  test('of time end a connection that does not come about', async (t) => {
    const { pool, now } = await start(t, () => {})
    // Nobody answers there (RFC 5737).
    const far = new Pool({ host: '192.0.2.1', port: 9 }, pool.limits, now)
    t.after(() => far.close())
    const call = callOf()
    far.send(call)
    now.ms += 2_000
    far.check()
    assert.equal(call.failures[0]?.kind, 'connect')
  })
})

describe('a connection that its server closes as it is used', () => {
  async function serve(t: TestContext) {
    let requests = 0
    const service = await rawService(t, (socket) => {
      let served = 0
      socket.on('data', () => {
        requests++
        if (served++ === 0) socket.write(OK)
        else socket.end()
      })
    })
    const wire = await startWire(() => {}, { service })
    t.after(() => wire.stop())
    const asked = new RawCaller(wire.port)
    t.after(() => asked.socket.destroy())
    await asked.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n').until(/ok$/)
    return { asked, requests: () => requests }
  }

  for (const request of [
    'GET / HTTP/1.1\r\nHost: a\r\n\r\n',
    'PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc',
    'PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n',
  ])
    test(`costs ${JSON.stringify(request.slice(0, 70))} nothing: it is sent again on a new one`, async (t) => {
      const { asked, requests } = await serve(t)
      await asked.send(request).until(/ok[\s\S]*ok$/)
      assert.equal(requests(), 3)
    })

  test('may have delivered a POST, which is not sent twice', async (t) => {
    const { asked, requests } = await serve(t)
    asked.send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc')
    assert.match(await asked.until(/\}$/), /502 Bad Gateway[\s\S]*upstream_reset/)
    assert.equal(requests(), 2)
  })
})
