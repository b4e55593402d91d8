/** Who gets into etcd and who does not, and what the program says about it. */

import assert from 'node:assert/strict'
import { createPublicKey } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, test } from 'node:test'
import { makeCertificates, startEtcd, withoutEtcdAndOpenssl, type Certificates } from '../../support/etcd.ts'
import { etcdAccess } from '../../../registry-server/src/store/open-store.ts'
import { StoreRefused } from '../../../registry-server/src/store/store.ts'
import { configOf, someNode, type TestRegistry } from '../support.ts'
import { lastWords, Program } from './program.ts'

const skip = await withoutEtcdAndOpenssl()
const PASSWORD = 'right horse battery'
const WRONG = 'Tr0ub4dor&3'

if (!skip) {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-access-'))
  after(() => rm(directory, { recursive: true, force: true }))
  const file = async (name: string, content: string) => {
    const made = path.join(directory, name)
    await writeFile(made, content)
    return made
  }
  const [right, wrong, empty, text] = await Promise.all([
    file('right', `${PASSWORD}\n`),
    file('wrong', WRONG),
    file('empty', '\n'),
    file('text', 'no certificate\n'),
  ])
  const [own, foreign] = await Promise.all([makeCertificates({ after }), makeCertificates({ after })])

  const plain = await startEtcd({ after })
  const guarded = await startEtcd({ after })
  await guarded.gateway.enableAuth()
  await guarded.gateway.addUser('app', PASSWORD, '/holdfast/')
  await guarded.gateway.addUser('other', PASSWORD, '/other/')
  const encrypted = await startEtcd({ after }, { certificates: own })
  const mutual = await startEtcd({ after }, { certificates: own, clientCertAuth: true })

  const user = (name: string, passwordFile: string) => ['--etcd-user', name, '--etcd-password-file', passwordFile]
  const ca = ({ caFile }: Certificates) => ['--etcd-ca', caFile]
  const client = ({ clientCertFile }: Certificates, { clientKeyFile }: Certificates) => [
    ...['--etcd-cert', clientCertFile],
    ...['--etcd-key', clientKeyFile],
  ]

  describe('settings that cannot work end the program, with one sentence about them', { concurrency: 2 }, () => {
    const cases: readonly (readonly [name: string, store: string, flags: readonly string[], words: RegExp])[] = [
      [
        'a wrong password',
        `etcd://${guarded.endpoint}`,
        user('app', wrong),
        /cannot be used: user or password is wrong; --etcd-user and --etcd-password-file name them$/,
      ],
      [
        'an unknown user',
        `etcd://${guarded.endpoint}`,
        user('nobody', right),
        /cannot be used: user or password is wrong; --etcd-user and --etcd-password-file name them$/,
      ],
      [
        'no user where there has to be one',
        `etcd://${guarded.endpoint}`,
        [],
        /cannot be used: it wants a user; --etcd-user and --etcd-password-file name one$/,
      ],
      [
        'a user for other keys',
        `etcd://${guarded.endpoint}`,
        user('other', right),
        /: the user of --etcd-user, other, may not read and write all that begins with \/holdfast\/, as --etcd-prefix says$/,
      ],
      [
        'a user where there are none',
        `etcd://${plain.endpoint}`,
        user('app', right),
        /cannot be used: it has no users, and --etcd-user names one$/,
      ],
      [
        'another authority',
        `etcds://${encrypted.endpoint}`,
        ca(foreign),
        /cannot be used: its certificate is not from the authority of --etcd-ca \(.+\)$/,
      ],
      [
        'no authority of its own',
        `etcds://${encrypted.endpoint}`,
        [],
        /cannot be used: its certificate is from no authority that is known here \(.+\); --etcd-ca names another$/,
      ],
      [
        'no client certificate',
        `etcds://${mutual.endpoint}`,
        ca(own),
        /cannot be used: it wants a client certificate \(.+\); --etcd-cert and --etcd-key name one$/,
      ],
      [
        'a client certificate of another authority',
        `etcds://${mutual.endpoint}`,
        [...ca(own), ...client(foreign, foreign)],
        /cannot be used: it does not take the certificate of --etcd-cert \(.+\)$/,
      ],
      [
        'a file that is not there',
        `etcd://${plain.endpoint}`,
        ['--etcd-ca', '/no/such/file'],
        /^--etcd-ca: cannot read \/no\/such\/file: no such file or directory$/,
      ],
    ]
    for (const [name, store, flags, words] of cases)
      test(name, async (context) => {
        const ended = await new Program(context, ['--store', store, ...flags]).ended
        assert.deepEqual([ended.code, ended.stdout], [1, ''])
        assert.match(lastWords(ended), words)
        for (const secret of [PASSWORD, WRONG]) assert.ok(!ended.stderr.includes(secret))
      })
  })

  test('a file that is not what its flag says is named with its flag', () => {
    const store = `etcds://${mutual.endpoint}`
    for (const [etcd, words] of [
      [{ ca: directory }, /^--etcd-ca: cannot read \S+: illegal operation on a directory$/],
      [{ ca: text }, /^--etcd-ca: \S+ holds no certificate in PEM$/],
      [{ cert: text, key: own.clientKeyFile }, /^--etcd-cert: \S+ holds no certificate in PEM$/],
      [{ cert: own.clientCertFile, key: text }, /^--etcd-key: \S+ holds no key without a passphrase in PEM$/],
      [{ cert: own.clientCertFile, key: own.caFile }, /^--etcd-key: \S+ holds no key without a passphrase in PEM$/],
      [
        { cert: own.clientCertFile, key: foreign.clientKeyFile },
        /^--etcd-key: \S+ is not the key of the certificate in \S+, as --etcd-cert says$/,
      ],
      [{ user: 'app', passwordFile: '/no' }, /^--etcd-password-file: cannot read \/no: no such file or directory$/],
      [{ user: 'app', passwordFile: empty }, /^--etcd-password-file: \S+ is empty$/],
    ] as const)
      assert.throws(
        () => etcdAccess(configOf(directory, { store, etcd })),
        (error: Error) => error instanceof StoreRefused && words.test(error.message),
      )
    const { password } = etcdAccess(configOf(directory, { store, etcd: { user: 'app', passwordFile: right } }))
    assert.equal(password, PASSWORD)
  })

  describe('what may be about to change is waited for', { concurrency: 2 }, () => {
    test('one member with a wrong certificate, beside one that is down', async (context) => {
      const members = `etcds://${encrypted.endpoint},127.0.0.1:1`
      const program = new Program(context, ['--store', members, ...ca(foreign)])
      const { reasons } = await program.logged(({ reasons = {} }) => Object.keys(reasons).length === 2)
      assert.match(reasons![encrypted.endpoint]!, /^its certificate is not from the authority of --etcd-ca/)
      assert.equal(reasons!['127.0.0.1:1'], 'connection refused')
      assert.equal((await program.stop()).code, 0)
    })

    test('TLS on one side only', async (context) => {
      for (const [store, flags, reason] of [
        [`etcd://${encrypted.endpoint}`, [], /^it closed the connection at once; where it wants TLS, --store begins/],
        [`etcds://${plain.endpoint}`, ca(own), /^it ended the TLS handshake; where it speaks no TLS, --store begins/],
      ] as const) {
        const program = new Program(context, ['--store', store, ...flags])
        const { reasons } = await program.logged(({ msg }) => msg === 'waiting for etcd')
        assert.match(Object.values(reasons!).join(), reason)
        assert.equal((await program.stop()).code, 0)
      }
    })
  })

  describe('what is right works', { concurrency: 2 }, () => {
    test('one member with the right certificate, beside one with a wrong one', async (context) => {
      const misfit = await startEtcd(context, { certificates: foreign })
      const members = `etcds://${misfit.endpoint},${encrypted.endpoint}`
      const program = new Program(context, ['--store', members, ...ca(own)])
      await writes(await program.ready())
      assert.equal((await program.stop()).code, 0)
    })

    test('a user, also after etcd was restarted and has forgotten all tokens', async (context) => {
      const member = await startEtcd(context)
      await member.gateway.enableAuth()
      await member.gateway.addUser('app', PASSWORD, '/holdfast/')
      const program = new Program(context, ['--store', `etcd://${member.endpoint}`, ...user('app', right)])
      const call = await program.ready()
      await writes(call)
      await member.kill()
      await member.start()
      await program.logged(({ msg }) => msg === 'etcd lost; trying again')
      await program.logged(connectedAgain(program))
      await writes(call)
      await tellsNobody(program, call)
    })

    test('a user whose token has run out', async (context) => {
      const key = path.join(directory, 'token')
      const pem = own.serverKeyFile
      await writeFile(key, await readFile(pem))
      const publicKey = await file('token.pub', await publicKeyOf(pem))
      const jwt = `jwt,pub-key=${publicKey},priv-key=${key},sign-method=ES256,ttl=1s`
      const member = await startEtcd(context, { flags: [`--auth-token=${jwt}`] })
      await member.gateway.enableAuth()
      await member.gateway.addUser('app', PASSWORD, '/holdfast/')
      const program = new Program(context, ['--store', `etcd://${member.endpoint}`, ...user('app', right)])
      const call = await program.ready()
      const lease = await call('POST', '/v1/leases', { ttl: '2s', owner: 'me' })
      assert.equal(lease.status, 201)
      // Long enough for several tokens: its replica is renewed in etcd every two seconds.
      for (const endMs = Date.now() + 5_000; Date.now() < endMs;) {
        assert.equal((await call('POST', `/v1/leases/${lease.body.id}/renew`)).status, 200)
        await writes(call)
      }
      assert.equal(program.log.filter(({ level }) => level >= 40).length, 0, program.stderr)
      await tellsNobody(program, call)
    })

    test('a client certificate, and a password from the configuration file', async (context) => {
      const member = await startEtcd(context, { certificates: own, clientCertAuth: true })
      await member.gateway.enableAuth()
      await member.gateway.addUser('app', PASSWORD, '/holdfast/')
      const config = await file(
        'registry.yaml',
        `etcd:\n  user: app\n  password: ${PASSWORD}\n  ca: ${own.caFile}\n` +
          `  cert: ${own.namelessCertFile}\n  key: ${own.namelessKeyFile}\n`,
      )
      const program = new Program(context, ['--config', config, '--store', `etcds://${member.endpoint}`])
      const call = await program.ready()
      await writes(call)
      await member.kill()
      await member.start()
      await program.logged(connectedAgain(program))
      await writes(call)
      await tellsNobody(program, call)
    })

    test('the user that the client certificate names', async (context) => {
      const member = await startEtcd(context, { certificates: own, clientCertAuth: true })
      await member.gateway.enableAuth()
      await member.gateway.addUser('holdfast', PASSWORD, '/holdfast/')
      const flags = [...ca(own), ...client(own, own)]
      const program = new Program(context, ['--store', `etcds://${member.endpoint}`, ...flags])
      await writes(await program.ready())
      assert.equal((await program.stop()).code, 0)
      const elsewhere = new Program(context, [
        ...['--store', `etcds://${member.endpoint}`, '--etcd-prefix', '/other/'],
        ...flags,
      ])
      assert.match(
        lastWords(await elsewhere.ended),
        /the user whom the client certificate stands for may not read and write all that begins with \/other\//,
      )
    })
  })
} else test('who gets into etcd', { skip })

let written = 0

async function writes(call: TestRegistry['call']): Promise<void> {
  const { status } = await call('PUT', `/v1/services/stock/nodes/${++written}`, someNode)
  assert.ok(status === 201, String(status))
}

function connectedAgain(program: Program) {
  return () => program.log.filter(({ msg }) => msg === 'connected to etcd').length > 1
}

/** The password is neither in what the program says nor in what the system says of it. */
async function tellsNobody(program: Program, call: TestRegistry['call']): Promise<void> {
  for (const target of ['/v1/status', '/metrics', '/readyz'])
    assert.ok(!(await call('GET', target)).text.includes(PASSWORD))
  assert.ok(!(await readFile(`/proc/${program.pid}/cmdline`, 'utf8').catch(() => '')).includes(PASSWORD))
  const { code, stdout, stderr } = await program.stop()
  assert.equal(code, 0)
  assert.ok(!(stdout + stderr).includes(PASSWORD))
}

async function publicKeyOf(keyFile: string): Promise<string> {
  return createPublicKey(await readFile(keyFile))
    .export({ type: 'spki', format: 'pem' })
    .toString()
}
