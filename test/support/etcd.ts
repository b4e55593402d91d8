/**
 * A real etcd on loopback, for tests: one member or a cluster, each a process that a test can kill, freeze and start
 * again on the same data and ports, and a way to look into it beside the product.
 */

import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import https from 'node:https'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { findOrInstall, findProgram } from './debian.ts'

const READY_MS = 30_000
const ANSWER_MS = 5_000
const LOG_LINES = 100
/** How often a state is asked for that etcd reaches on its own. */
const ASK_AGAIN_MS = 20
const START_ATTEMPTS = 5

const runProgram = promisify(execFile)

/** What ends things with a test: its context; or, at the top level of a file, `{ after }` of node:test. */
export type Cleanup = { after(fn: () => void | Promise<void>): void }

let etcd: Promise<string | undefined> | undefined

/** The etcd program of this machine; as root on Debian it is installed when it is missing. */
export function etcdProgram(): Promise<string | undefined> {
  return (etcd ??= findOrInstall('etcd', 'etcd-server', 'etcd'))
}

const NEEDS_ETCD = 'needs etcd: apt install etcd-server'
const NEEDS_OPENSSL = 'needs openssl: apt install openssl'

/** Why a test that runs etcd is to be skipped; false where it can run. */
export async function withoutEtcd(): Promise<string | false> {
  return (await etcdProgram()) === undefined && NEEDS_ETCD
}

/** The same for a test that needs certificates too. */
export async function withoutEtcdAndOpenssl(): Promise<string | false> {
  return (await withoutEtcd()) || ((await findProgram('openssl')) === undefined && NEEDS_OPENSSL)
}

/** Files in PEM. */
export interface Certificates {
  readonly caFile: string
  readonly serverCertFile: string
  readonly serverKeyFile: string
  readonly clientCertFile: string
  readonly clientKeyFile: string
  /** A client certificate that names nobody: with auth enabled, etcd's JSON gateway refuses one that names a user. */
  readonly namelessCertFile: string
  readonly namelessKeyFile: string
}

/**
 * A certificate authority of the test's own, with a server certificate for 127.0.0.1 and localhost and client
 * certificates.
 * @param clientName the client certificate's common name, which is the user that it stands for once auth is enabled
 */
export async function makeCertificates(context: Cleanup, clientName = 'holdfast'): Promise<Certificates> {
  const openssl = await findProgram('openssl')
  if (openssl === undefined) throw new Error(NEEDS_OPENSSL)
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-certificates-'))
  context.after(() => rm(directory, { recursive: true, force: true }))
  const file = (name: string) => path.join(directory, name)
  const days = ['-days', '3650']
  const request = (name: string, subject: string, more: readonly string[] = []) => {
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', file(`${name}.key`)]
    return runProgram(openssl, ['req', '-new', ...key, '-subj', subject, ...more])
  }
  const sign = async (name: string, subject: string, extensions: string) => {
    await Promise.all([
      request(name, subject, ['-out', file(`${name}.csr`)]),
      writeFile(file(`${name}.ext`), `${extensions}\nbasicConstraints=CA:FALSE\n`),
    ])
    const authority = ['-CA', file('ca.pem'), '-CAkey', file('ca.key'), '-CAcreateserial']
    const files = ['-in', file(`${name}.csr`), '-extfile', file(`${name}.ext`), '-out', file(`${name}.pem`)]
    await runProgram(openssl, ['x509', '-req', ...authority, ...days, ...files])
  }
  await request('ca', '/CN=holdfast test authority', ['-x509', ...days, '-out', file('ca.pem')])
  // etcd's own JSON gateway shows the server's certificate to etcd as a client does.
  const names = 'subjectAltName=IP:127.0.0.1,DNS:localhost'
  await sign('server', '/CN=localhost', `${names}\nextendedKeyUsage=serverAuth,clientAuth`)
  await sign('client', `/CN=${clientName}`, 'extendedKeyUsage=clientAuth')
  await sign('nameless', '/', 'extendedKeyUsage=clientAuth')
  return {
    caFile: file('ca.pem'),
    serverCertFile: file('server.pem'),
    serverKeyFile: file('server.key'),
    clientCertFile: file('client.pem'),
    clientKeyFile: file('client.key'),
    namelessCertFile: file('nameless.pem'),
    namelessKeyFile: file('nameless.key'),
  }
}

/** Counters and gauges as Prometheus reads them. */
export class Metrics {
  readonly #samples = new Map<string, { readonly labels: ReadonlyMap<string, string>; readonly value: number }[]>()

  constructor(text: string) {
    for (const line of text.split('\n')) {
      const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line)
      if (!match) continue
      const [, name = '', inBraces = '', value] = match
      const pairs = inBraces.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)
      const labels = new Map([...pairs].map(([, label = '', text = '']) => [label, unescapeLabel(text)]))
      const samples = this.#samples.get(name) ?? []
      samples.push({ labels, value: Number(value) })
      this.#samples.set(name, samples)
    }
  }

  /** The sum of all samples of that name that bear these labels; 0 when there is none. */
  sum(name: string, labels: Readonly<Record<string, string>> = {}): number {
    const wanted = Object.entries(labels)
    return (this.#samples.get(name) ?? [])
      .filter((sample) => wanted.every(([label, value]) => sample.labels.get(label) === value))
      .reduce((sum, sample) => sum + sample.value, 0)
  }
}

function unescapeLabel(text: string): string {
  return text.replace(/\\(.)/g, (_, escaped: string) => (escaped === 'n' ? '\n' : escaped))
}

export interface Entry {
  readonly key: string
  readonly value: string
  readonly createRevision: number
  readonly modRevision: number
  readonly version: number
  /** In decimal; '0' for none. */
  readonly lease: string
}

export interface MemberStatus {
  readonly memberId: string
  /** '0' when the member knows no leader. */
  readonly leaderId: string
  readonly term: number
  readonly revision: number
  readonly dbSize: number
}

/** As the JSON gateway writes them: 64-bit numbers as text, bytes in base64, fields left out when they are zero. */
interface GatewayEntry {
  readonly key: string
  readonly value?: string
  readonly create_revision: string
  readonly mod_revision: string
  readonly version: string
  readonly lease?: string
}

interface GatewayHeader {
  readonly member_id: string
  readonly revision?: string
  readonly raft_term: string
}

interface Answer {
  readonly status: number
  readonly text: string
}

const toBase64 = (text: string): string => Buffer.from(text).toString('base64')
const fromBase64 = (text = ''): string => Buffer.from(text, 'base64').toString()

/** All keys that begin with `prefix`. */
function rangeOf(prefix: string): { key: string; range_end: string } {
  if (prefix === '') return { key: toBase64('\0'), range_end: toBase64('\0') }
  const end = Buffer.from(prefix)
  // No byte of UTF-8 is 0xff.
  end[end.length - 1]! += 1
  return { key: toBase64(prefix), range_end: end.toString('base64') }
}

/** Who asks; shared by the members of a cluster, as their users are. */
interface Access {
  readonly tls: { readonly ca: Buffer; readonly cert: Buffer; readonly key: Buffer } | undefined
  user: { readonly name: string; readonly password: string } | undefined
  token: string | undefined
}

/** A member as seen through its HTTP side, beside the product. What it asks counts in the member's metrics too. */
export class Gateway {
  readonly #port: number
  readonly #access: Access

  constructor(port: number, access: Access) {
    this.#port = port
    this.#access = access
  }

  /** Any method of the JSON gateway, such as `/v3/kv/txn`. Fails with etcd's message. */
  async call<T = unknown>(target: string, body: object = {}): Promise<T> {
    const { user } = this.#access
    if (user !== undefined) this.#access.token ??= await this.#authenticate(user)
    let answer = await this.ask('POST', target, body)
    // A token ends with the member's process, and with every change of the users.
    if (answer.status !== 200 && user !== undefined && /invalid auth token|revision.*old/.test(answer.text)) {
      this.#access.token = await this.#authenticate(user)
      answer = await this.ask('POST', target, body)
    }
    if (answer.status !== 200) throw new Error(`${target} answered ${answer.status}: ${answer.text}`)
    return JSON.parse(answer.text) as T
  }

  async put(key: string, value: string, lease = '0'): Promise<void> {
    await this.call('/v3/kv/put', { key: toBase64(key), value: toBase64(value), lease })
  }

  async get(key: string): Promise<string | undefined> {
    const { kvs = [] } = await this.call<{ kvs?: GatewayEntry[] }>('/v3/kv/range', { key: toBase64(key) })
    return kvs[0] && fromBase64(kvs[0].value)
  }

  /** The keys that begin with `prefix`, in order; all keys without one. */
  async keys(prefix = ''): Promise<string[]> {
    const range = { ...rangeOf(prefix), keys_only: true }
    const { kvs = [] } = await this.call<{ kvs?: GatewayEntry[] }>('/v3/kv/range', range)
    return kvs.map((entry) => fromBase64(entry.key))
  }

  async entries(prefix = ''): Promise<Entry[]> {
    const { kvs = [] } = await this.call<{ kvs?: GatewayEntry[] }>('/v3/kv/range', rangeOf(prefix))
    return kvs.map((entry) => ({
      key: fromBase64(entry.key),
      value: fromBase64(entry.value),
      createRevision: Number(entry.create_revision),
      modRevision: Number(entry.mod_revision),
      version: Number(entry.version),
      lease: entry.lease ?? '0',
    }))
  }

  /** Returns whether the key was there. */
  async delete(key: string): Promise<boolean> {
    const { deleted } = await this.call<{ deleted?: string }>('/v3/kv/deleterange', { key: toBase64(key) })
    return deleted === '1'
  }

  /** Returns how many keys were deleted. */
  async deletePrefix(prefix: string): Promise<number> {
    const { deleted = 0 } = await this.call<{ deleted?: string }>('/v3/kv/deleterange', rangeOf(prefix))
    return Number(deleted)
  }

  /** The revision that the whole cluster agrees on. */
  async revision(): Promise<number> {
    const range = { key: toBase64('\0'), count_only: true }
    const { header } = await this.call<{ header: GatewayHeader }>('/v3/kv/range', range)
    return Number(header.revision)
  }

  /** Forgets what came before `revision`, and returns when it is gone from the disk too. */
  async compact(revision: number): Promise<void> {
    await this.call('/v3/kv/compaction', { revision: String(revision), physical: true })
  }

  /** The ids of all leases, in decimal. */
  async leases(): Promise<string[]> {
    const { leases = [] } = await this.call<{ leases?: { ID: string }[] }>('/v3/lease/leases')
    return leases.map((lease) => lease.ID)
  }

  /** Returns its id, in decimal. */
  async grantLease(ttlSeconds: number): Promise<string> {
    const { ID } = await this.call<{ ID: string }>('/v3/lease/grant', { TTL: String(ttlSeconds) })
    return ID
  }

  async revokeLease(id: string): Promise<void> {
    await this.call('/v3/lease/revoke', { ID: id })
  }

  async status(): Promise<MemberStatus> {
    const status = await this.call<{ header: GatewayHeader; leader?: string; dbSize?: string }>(
      '/v3/maintenance/status',
    )
    return {
      memberId: status.header.member_id,
      leaderId: status.leader ?? '0',
      term: Number(status.header.raft_term),
      revision: Number(status.header.revision),
      dbSize: Number(status.dbSize),
    }
  }

  async metrics(): Promise<Metrics> {
    const { status, text } = await this.ask('GET', '/metrics')
    if (status !== 200) throw new Error(`/metrics answered ${status}: ${text}`)
    return new Metrics(text)
  }

  /** Whether the member is in a cluster that can commit. A database that is full does not count against it. */
  async isHealthy(): Promise<boolean> {
    return this.ask('GET', '/health?exclude=NOSPACE').then(
      ({ status, text }) => status === 200 && text.includes('"true"'),
      () => false,
    )
  }

  /** From here on etcd wants a user and a password, and this gateway has them. */
  async enableAuth(user = 'root', password = 'secret'): Promise<void> {
    await this.call('/v3/auth/role/add', { name: 'root' })
    // Without a user of this name etcd refuses to enable it.
    for (const name of new Set(['root', user])) await this.#addUser(name, password, 'root')
    await this.call('/v3/auth/enable')
    this.#access.user = { name: user, password }
    this.#access.token = undefined
  }

  /** A user who may read and write the keys that begin with `prefix`, and nothing else. */
  async addUser(name: string, password: string, prefix: string): Promise<void> {
    await this.call('/v3/auth/role/add', { name })
    const perm = { permType: 'READWRITE', ...rangeOf(prefix) }
    await this.call('/v3/auth/role/grant', { name, perm })
    await this.#addUser(name, password, name)
  }

  async disableAuth(): Promise<void> {
    await this.call('/v3/auth/disable')
    this.#access.user = undefined
    this.#access.token = undefined
  }

  async ask(method: string, target: string, body?: object): Promise<Answer> {
    const { tls, token } = this.#access
    const options = {
      ...{ host: '127.0.0.1', port: this.#port, method, path: target, agent: false, ...tls },
      headers: { ...(token !== undefined && { authorization: token }) },
      signal: AbortSignal.timeout(ANSWER_MS),
    }
    const request = tls === undefined ? http.request(options) : https.request(options)
    // What goes wrong before the answer is thrown below; after it, by the reading of the answer.
    request.on('error', () => {})
    request.end(body && JSON.stringify(body))
    const [response] = (await once(request, 'response')) as [http.IncomingMessage]
    response.setEncoding('utf8')
    let text = ''
    for await (const chunk of response) text += chunk as string
    return { status: response.statusCode!, text }
  }

  async #authenticate({ name, password }: NonNullable<Access['user']>): Promise<string> {
    this.#access.token = undefined
    const answer = await this.ask('POST', '/v3/auth/authenticate', { name, password })
    if (answer.status !== 200) throw new Error(`no token for ${name}: ${answer.status} ${answer.text}`)
    return (JSON.parse(answer.text) as { token: string }).token
  }

  async #addUser(name: string, password: string, role: string): Promise<void> {
    await this.call('/v3/auth/user/add', { name, password })
    await this.call('/v3/auth/user/grant', { user: name, role })
  }
}

export interface EtcdOptions {
  /** Further flags, such as `--auto-compaction-retention=1`, `--max-txn-ops=512` or `--quota-backend-bytes=1000000`. */
  readonly flags?: readonly string[]
  /** Serves clients over TLS. */
  readonly certificates?: Certificates
  /** Takes only clients that show a certificate of the same authority. */
  readonly clientCertAuth?: boolean
  /** etcd's own are 100 and 1000. */
  readonly timing?: { readonly heartbeatMs: number; readonly electionMs: number }
}

/** A process that ended by itself: a port was taken meanwhile, or the machine was out of something for a moment. */
class EndedError extends Error {}

/** One etcd process after another, on the same data and ports. */
export class Member {
  readonly name: string
  readonly clientPort: number
  readonly dataDir: string
  readonly gateway: Gateway
  readonly #command: readonly string[]
  readonly #log: string[] = []
  #child: ChildProcess | undefined
  #gone: Promise<unknown> = Promise.resolve()
  #isFrozen = false

  constructor(name: string, clientPort: number, dataDir: string, gateway: Gateway, command: readonly string[]) {
    this.name = name
    this.clientPort = clientPort
    this.dataDir = dataDir
    this.gateway = gateway
    this.#command = command
  }

  get endpoint(): string {
    return `127.0.0.1:${this.clientPort}`
  }

  /** Of the process that runs, or ran last. */
  get pid(): number {
    if (this.#child?.pid === undefined) throw new Error(`${this.name} was never started`)
    return this.#child.pid
  }

  /** Also true of one that is frozen. */
  get isRunning(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null
  }

  get isFrozen(): boolean {
    return this.isRunning && this.#isFrozen
  }

  /** The last lines that its processes wrote. */
  get log(): readonly string[] {
    return this.#log
  }

  /**
   * Starts it, and returns when it is healthy.
   * @param options.wait false returns at once: a member is not healthy without a majority of its cluster
   */
  async start(options: { readonly wait?: boolean } = {}): Promise<void> {
    if (this.isRunning) throw new Error(`${this.name} runs already`)
    const [program, ...args] = this.#command
    // Only what it needs: ETCD_ variables of the caller would be settings.
    const env = { PATH: process.env.PATH, ...(process.arch === 'arm64' && { ETCD_UNSUPPORTED_ARCH: 'arm64' }) }
    const child = spawn(program!, args, { env, stdio: ['ignore', 'ignore', 'pipe'] })
    this.#child = child
    this.#isFrozen = false
    this.#log.length = 0
    createInterface({ input: child.stderr }).on('line', (line) => {
      this.#log.push(line)
      if (this.#log.length > LOG_LINES) this.#log.shift()
    })
    // Closed comes after the exit, with the last lines read.
    this.#gone = new Promise((resolve) => child.once('close', resolve))
    await once(child, 'spawn')
    if (options.wait !== false) await this.untilHealthy()
  }

  /** Returns when it is healthy; fails when its process ends before. */
  async untilHealthy(): Promise<void> {
    const child = this.#child
    const endMs = Date.now() + READY_MS
    while (this.isRunning && child === this.#child) {
      if (await this.gateway.isHealthy()) return
      if (Date.now() > endMs) throw new Error(`${this.name} was not healthy in ${READY_MS} ms${this.#lastLines}`)
      await askAgain()
    }
    await this.#gone
    throw new EndedError(`${this.name} ended before it was healthy${this.#lastLines}`)
  }

  /** As a crash: no time to say goodbye. Returns when the process is gone. */
  async kill(): Promise<void> {
    if (this.isRunning) this.#child!.kill('SIGKILL')
    await this.#gone
  }

  /** As an operator does. With streams open etcd takes seconds over it. Returns when the process is gone. */
  async stop(): Promise<void> {
    if (this.isRunning) this.#child!.kill('SIGTERM')
    this.thaw()
    await this.#gone
  }

  /** Its connections stay and nothing is answered, as when the machine hangs. */
  freeze(): void {
    if (!this.isRunning) throw new Error(`${this.name} does not run`)
    this.#child!.kill('SIGSTOP')
    this.#isFrozen = true
  }

  thaw(): void {
    if (this.isRunning) this.#child!.kill('SIGCONT')
    this.#isFrozen = false
  }

  get #lastLines(): string {
    return this.#log.length === 0 ? ', and wrote nothing' : `:\n${this.#log.join('\n')}`
  }
}

/** Members that agree by majority. */
export class Cluster {
  readonly members: readonly Member[]

  constructor(members: readonly Member[]) {
    this.members = members
  }

  get endpoints(): readonly string[] {
    return this.members.map((member) => member.endpoint)
  }

  /** The member that a majority follows, itself neither killed nor frozen. Waits for an election that is under way. */
  async leader(): Promise<Member> {
    const endMs = Date.now() + READY_MS
    while (Date.now() < endMs) {
      const leader = await this.#agreed()
      if (leader !== undefined) return leader
      await askAgain()
    }
    throw new Error(`no leader in ${READY_MS} ms\n${this.members.flatMap((member) => member.log).join('\n')}`)
  }

  /** The members that run and do not lead. */
  async followers(): Promise<Member[]> {
    const leader = await this.leader()
    return this.members.filter((member) => member !== leader && member.isRunning && !member.isFrozen)
  }

  /** Kills all members at once. */
  async killAll(): Promise<void> {
    await Promise.all(this.members.map((member) => member.kill()))
  }

  /** Starts all that do not run, and returns when they are healthy. */
  async startAll(): Promise<void> {
    await Promise.all(this.members.filter((member) => !member.isRunning).map((member) => member.start()))
  }

  async #agreed(): Promise<Member | undefined> {
    const running = this.members.filter((member) => member.isRunning && !member.isFrozen)
    const statuses = await Promise.all(
      running.map(async (member) => ({ member, ...(await member.gateway.status().catch(() => undefined)) })),
    )
    const leader = statuses.find((status) => status.memberId !== undefined && status.memberId === status.leaderId)
    const followed = statuses.filter((status) => status.leaderId === leader?.memberId && status.term === leader?.term)
    return followed.length > this.members.length / 2 ? leader?.member : undefined
  }
}

/** One member, healthy. It and its data are gone with the test. */
export async function startEtcd(context: Cleanup, options: EtcdOptions = {}): Promise<Member> {
  const [member] = await startMembers(context, 1, options)
  return member!
}

/** Members that found each other, all healthy. They and their data are gone with the test. */
export async function startEtcdCluster(context: Cleanup, size = 3, options: EtcdOptions = {}): Promise<Cluster> {
  return new Cluster(await startMembers(context, size, options))
}

async function startMembers(context: Cleanup, size: number, options: EtcdOptions): Promise<Member[]> {
  const program = await etcdProgram()
  if (program === undefined) throw new Error(NEEDS_ETCD)
  const made: Member[] = []
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-etcd-'))
  // One hook for both: etcd must be gone before its directory.
  context.after(async () => {
    await Promise.all(made.map((member) => member.kill()))
    await rm(directory, { recursive: true, force: true })
  })
  const command = [...(await endWithParent()), program]
  for (let attempt = 1; ; attempt++) {
    const members = await makeMembers(command, path.join(directory, String(attempt)), size, options)
    made.push(...members)
    try {
      await Promise.all(members.map((member) => member.start()))
      return members
    } catch (error) {
      await Promise.all(members.map((member) => member.kill()))
      if (!(error instanceof EndedError) || attempt === START_ATTEMPTS) throw error
    }
  }
}

async function makeMembers(
  command: readonly string[],
  directory: string,
  size: number,
  options: EtcdOptions,
): Promise<Member[]> {
  const { flags = [], certificates, clientCertAuth, timing } = options
  const tls = certificates && {
    ca: readFileSync(certificates.caFile),
    cert: readFileSync(certificates.namelessCertFile),
    key: readFileSync(certificates.namelessKeyFile),
  }
  const access: Access = { tls, user: undefined, token: undefined }
  const scheme = certificates ? 'https' : 'http'
  const planned: { name: string; clientPort: number; peerUrl: string }[] = []
  for (let number = 1; number <= size; number++) {
    const [clientPort, peerPort] = [await choosePort(), await choosePort()]
    planned.push({ name: `etcd-${number}`, clientPort, peerUrl: `http://127.0.0.1:${peerPort}` })
  }
  const initialCluster = planned.map(({ name, peerUrl }) => `${name}=${peerUrl}`).join(',')
  return planned.map(({ name, clientPort, peerUrl }) => {
    const clientUrl = `${scheme}://127.0.0.1:${clientPort}`
    const dataDir = path.join(directory, name)
    const args = [
      `--name=${name}`,
      `--data-dir=${dataDir}`,
      `--listen-client-urls=${clientUrl}`,
      `--advertise-client-urls=${clientUrl}`,
      `--listen-peer-urls=${peerUrl}`,
      `--initial-advertise-peer-urls=${peerUrl}`,
      `--initial-cluster=${initialCluster}`,
      // So that clusters that come one after another on the same ports never take part in each other.
      `--initial-cluster-token=${directory}`,
      ...['--logger=zap', '--log-outputs=stderr', '--log-level=warn'],
      // The cheapest: a test's password is no secret.
      '--bcrypt-cost=4',
      ...(timing ? [`--heartbeat-interval=${timing.heartbeatMs}`, `--election-timeout=${timing.electionMs}`] : []),
      ...(certificates
        ? [`--cert-file=${certificates.serverCertFile}`, `--key-file=${certificates.serverKeyFile}`]
        : []),
      ...(certificates && clientCertAuth ? ['--client-cert-auth', `--trusted-ca-file=${certificates.caFile}`] : []),
      ...flags,
    ]
    return new Member(name, clientPort, dataDir, new Gateway(clientPort, access), [...command, ...args])
  })
}

let wrapper: Promise<string[]> | undefined

/** What starts a program so that it ends with this process, however this one ends. */
function endWithParent(): Promise<string[]> {
  wrapper ??= findProgram('setpriv').then(async (setpriv) => {
    if (setpriv === undefined) return []
    const command = [setpriv, '--pdeathsig', 'KILL']
    return runProgram(setpriv, [...command.slice(1), 'true']).then(
      () => command,
      () => [],
    )
  })
  return wrapper
}

/** Below what systems hand out on their own: no connection and no port 0 takes the port of a member that is down. */
const FIRST_PORT = 20_000
const PORTS = 12_000
const PORTS_OF_A_PROCESS = 24
let portsTried = 0

/** A port that is free now. Processes that run at the same time look in different places. */
async function choosePort(): Promise<number> {
  while (portsTried < PORTS) {
    const port = FIRST_PORT + ((process.pid * PORTS_OF_A_PROCESS + portsTried++) % PORTS)
    if (await isFree(port)) return port
  }
  throw new Error('no port is free')
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createServer()
    probe.once('error', () => resolve(false))
    probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)))
  })
}

function askAgain(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS))
}
