/** Real processes on this machine: a registry, services, and a sidecar before each. Port 0 everywhere unless asked. */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { freePort } from '../support/free-port.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const PROGRAMS = {
  registry: 'registry-server/bin/holdfast-registry.js',
  sidecar: 'sidecar-plugin/bin/holdfast-sidecar.js',
  cli: 'registry-client/bin/holdfast.js',
} as const
const READY_MS = 60_000

/** One running process. Its output goes to `{directory}/{name}.log`. */
export class Program {
  readonly name: string
  readonly process: ChildProcess
  readonly logFile: string
  readonly exited: Promise<number | null>
  /** The line on standard output that said what listens where. */
  ready = ''

  constructor(name: string, child: ChildProcess, logFile: string) {
    this.name = name
    this.process = child
    this.logFile = logFile
    this.exited = once(child, 'exit').then(([code]) => code as number | null)
  }

  get pid(): number {
    return this.process.pid!
  }

  /** The port that the ready line gives after `word`. */
  port(word = ''): number {
    const match = new RegExp(`${word}[^/]*https?://[^ ,]*:(\\d+)`).exec(this.ready)
    if (!match) throw new Error(`${this.name} did not say where ${word} listens: ${this.ready}`)
    return Number(match[1])
  }

  /** Sends a signal and waits until the process is gone. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    if (this.process.exitCode === null && this.process.signalCode === null) this.process.kill(signal)
    return this.exited
  }

  tail(lines = 15): string {
    return readFileSync(this.logFile, 'utf8').trimEnd().split('\n').slice(-lines).join('\n')
  }
}

interface StartOptions {
  readonly directory: string
  readonly args: readonly string[]
  readonly env?: Readonly<Record<string, string>>
}

/**
 * Starts a script and returns once it has said that it is ready.
 * @param spawned called with the process before it is ready, so that it can be stopped while it starts
 */
async function start(
  name: string,
  script: string,
  options: StartOptions,
  spawned: (program: Program) => void,
): Promise<Program> {
  mkdirSync(options.directory, { recursive: true })
  const logFile = path.join(options.directory, `${name}.log`)
  const log = createWriteStream(logFile, { flags: 'a' })
  // Only what a program needs: a setting in the caller's environment must not leak into the mesh.
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, ...options.env }
  const child = spawn(process.execPath, [path.resolve(ROOT, script), ...options.args], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd: options.directory,
  })
  const program = new Program(name, child, logFile)
  spawned(program)
  child.stderr.pipe(log, { end: false })
  const lines = createInterface({ input: child.stdout })
  const ready = new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${name} was not ready in ${READY_MS} ms`)), READY_MS)
    lines.on('line', (line) => {
      log.write(`${line}\n`)
      if (program.ready || !/\bready\b/.test(line)) return
      program.ready = line
      clearTimeout(timer)
      resolve()
    })
    void program.exited.then((code) => {
      clearTimeout(timer)
      if (program.ready) return
      // The log's last lines arrive after the exit.
      setImmediate(() => reject(new Error(`${name} ended with ${code} before it was ready:\n${program.tail()}`)))
    })
  })
  await ready
  return program
}

/** A host of the mesh: a service and the sidecar before it, each restartable on its own and on the same ports. */
export class Host {
  readonly name: string
  readonly service: string
  /** Beside those that every sidecar of the mesh has. */
  readonly sidecarArgs: readonly string[]
  sidecar!: Program
  app!: Program
  readonly #mesh: Mesh
  #ports = { admin: 0, outbound: 0, inbound: 0, app: 0 }

  constructor(mesh: Mesh, service: string, name: string, sidecarArgs: readonly string[] = []) {
    this.#mesh = mesh
    this.sidecarArgs = sidecarArgs
    this.service = service
    this.name = name
  }

  get ports(): Readonly<{ admin: number; outbound: number; inbound: number; app: number }> {
    return this.#ports
  }

  async start(ports: Partial<Host['ports']> = {}): Promise<void> {
    this.#ports = { ...this.#ports, ...ports }
    // Named ports, as on a real host: what was registered through a sidecar survives its restart only on the same port.
    for (const name of ['admin', 'outbound', 'inbound'] as const) this.#ports[name] ||= await freePort()
    await this.startSidecar()
    await this.startApp()
  }

  async startSidecar(): Promise<void> {
    const { directory, registryUrl, sidecarArgs } = this.#mesh
    const { admin, outbound, inbound } = this.#ports
    this.sidecar = await this.#mesh.start(`${this.name}-sidecar`, PROGRAMS.sidecar, {
      args: [
        ...['--registry', registryUrl, '--cache-dir', path.join(directory, 'cache', this.name)],
        ...['--admin-port', String(admin), '--outbound-port', String(outbound), '--inbound-port', String(inbound)],
        ...sidecarArgs,
        ...this.sidecarArgs,
      ],
    })
  }

  async startApp(): Promise<void> {
    this.app = await this.#mesh.start(`${this.name}-app`, `test/mesh/apps/node/${this.service}.js`, {
      args: [],
      env: { PORT: String(this.#ports.app), OUTBOUND_PORT: String(this.#ports.outbound) },
    })
    this.#ports.app = this.app.port('ready')
  }

  /** One request to the sidecar's admin API, as any language would send it. */
  async register(): Promise<unknown> {
    return this.admin('PUT', `/v1/registrations/${this.service}`, { port: this.#ports.app })
  }

  async admin(method: string, target: string, body?: object): Promise<unknown> {
    const answer = await fetch(`http://127.0.0.1:${this.#ports.admin}${target}`, {
      method,
      ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
    })
    const text = await answer.text()
    if (!answer.ok) throw new Error(`${method} ${target} of ${this.name}: ${answer.status} ${text}`)
    return text === '' ? undefined : JSON.parse(text)
  }
}

export interface MeshOptions {
  /** For everything that the processes write. */
  readonly directory: string
  readonly sidecarArgs?: readonly string[]
}

export class Mesh {
  readonly directory: string
  readonly sidecarArgs: readonly string[]
  readonly hosts: Host[] = []
  registry!: Program
  readonly #running = new Set<Program>()
  #stopping = false
  #registryPort = 0

  constructor(options: MeshOptions) {
    this.directory = options.directory
    this.sidecarArgs = options.sidecarArgs ?? []
    mkdirSync(this.directory, { recursive: true })
  }

  get registryUrl(): string {
    return `http://127.0.0.1:${this.#registryPort}`
  }

  /** Starts the registry, on its old port and data when it ran before. */
  async startRegistry(port = this.#registryPort): Promise<void> {
    this.registry = await this.start('registry', PROGRAMS.registry, {
      args: ['--port', String(port), '--data-dir', path.join(this.directory, 'registry')],
    })
    this.#registryPort = this.registry.port('ready')
  }

  async addHost(
    service: string,
    name = service,
    ports: Partial<Host['ports']> = {},
    sidecarArgs: readonly string[] = [],
  ): Promise<Host> {
    const host = new Host(this, service, name, sidecarArgs)
    this.hosts.push(host)
    await host.start(ports)
    return host
  }

  /** Starts a script of the repository as one of the mesh's processes. */
  start(name: string, script: string, options: Omit<StartOptions, 'directory'>): Promise<Program> {
    if (this.#stopping) return Promise.reject(new Error('the mesh is stopping'))
    return start(name, script, { directory: this.directory, ...options }, (program) => {
      this.#running.add(program)
      void program.exited.then(() => this.#running.delete(program))
    })
  }

  get programs(): readonly Program[] {
    return [...this.#running]
  }

  /** Stops every process, those that still start included, the registry last so that sidecars can deregister. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    this.#stopping = true
    const isRegistry = (program: Program) => program.name === 'registry'
    await Promise.all(this.programs.filter((program) => !isRegistry(program)).map((program) => program.stop(signal)))
    await Promise.all(this.programs.map((program) => program.stop(signal)))
  }

  /** Ends every process at once. */
  kill(): void {
    for (const program of this.#running) program.process.kill('SIGKILL')
  }
}

/** Asks until `test` holds of the answer; for states that processes reach on their own. */
export async function eventually<T>(ask: () => Promise<T>, test: (value: T) => boolean, what: string): Promise<T> {
  const endMs = Date.now() + 60_000
  for (let last: unknown; ;) {
    try {
      const value = await ask()
      if (test(value)) return value
      last = value
    } catch (error) {
      last = error
    }
    if (Date.now() > endMs)
      throw new Error(`${what}: not in a minute; last seen: ${JSON.stringify(last) ?? String(last)}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}
