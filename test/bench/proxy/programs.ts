/** Programs under measurement and around it, each pinned to one core. */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect as connectSocket } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { writePlain } from '../plain.ts'
import { findOrInstall } from '../../support/debian.ts'
import { freePort } from '../../support/free-port.ts'

const ROOT = fileURLToPath(new URL('../../../', import.meta.url))

/** The core of the proxies, and that of the load and of the service behind. */
export const PROXY_CORE = 0
export const LOAD_CORE = 1

export const LARGE_BYTES = 1_048_576

const atExit = new Set<() => void>()
process.once('exit', () => {
  for (const run of atExit) run()
})

export interface Program {
  readonly pid: number
  readonly port: number
  stop(): Promise<void>
}

async function until(port: number, child: ChildProcess): Promise<void> {
  for (;;) {
    if (child.exitCode !== null) throw new Error(`${child.spawnargs.join(' ')} ended with ${child.exitCode}`)
    const socket = connectSocket(port, '127.0.0.1')
    const isThere = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false))
    })
    socket.destroy()
    if (isThere) return
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Starts a program on a core and waits until it listens. */
export async function run(core: number, command: readonly string[], port: number): Promise<Program> {
  const child = spawn('taskset', ['-c', String(core), ...command], {
    stdio: ['ignore', 'ignore', 'inherit'],
    cwd: ROOT,
    env: { ...process.env, HOLDFAST_LOG_LEVEL: 'error' },
  })
  const kill = () => child.kill('SIGKILL')
  atExit.add(kill)
  await until(port, child)
  return {
    pid: child.pid!,
    port,
    stop: async () => {
      if (child.exitCode !== null) return
      child.kill('SIGTERM')
      const timer = setTimeout(kill, 15_000)
      await once(child, 'exit')
      clearTimeout(timer)
      atExit.delete(kill)
    },
  }
}

/** A directory that is removed with the process. */
export function directory(): string {
  const made = mkdtempSync(path.join(tmpdir(), 'holdfast-bench-'))
  execFileSync('chmod', ['755', made])
  atExit.add(() => rmSync(made, { recursive: true, force: true }))
  return made
}

async function program(name: string, debianPackage: string): Promise<string> {
  const found = await findOrInstall(name, debianPackage, name)
  if (found === undefined) throw new Error(`needs ${name}: apt install ${debianPackage}`)
  return found
}

export const nginxProgram = (): Promise<string> => program('nginx', 'nginx-light')
export const haproxyProgram = (): Promise<string> => program('haproxy', 'haproxy')
export const wrkProgram = (): Promise<string> => program('wrk', 'wrk')

function nginxConfig(at: string, http: string): string {
  return `
daemon off; master_process off; pid ${at}/nginx.pid; error_log ${at}/error.log crit; worker_rlimit_nofile 20000;
events { worker_connections 15000; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; sendfile on; tcp_nodelay on;
  client_body_temp_path ${at}; proxy_temp_path ${at}; fastcgi_temp_path ${at}; uwsgi_temp_path ${at}; scgi_temp_path ${at};
  client_body_buffer_size 64k;
  ${http}
}`
}

/** The service behind all proxies: as cheap as can be had. */
export async function startService(): Promise<Program> {
  const [nginx, port] = await Promise.all([nginxProgram(), freePort()])
  const at = directory()
  writeFileSync(`${at}/large`, Buffer.alloc(LARGE_BYTES, 97))
  const server = `
  server {
    listen 127.0.0.1:${port} backlog=4096; root ${at};
    location /small { default_type application/json; return 200 '{"id":1,"name":"a small answer","stock":42}\\n'; }
    location /large { }
  }`
  writeFileSync(`${at}/nginx.conf`, nginxConfig(at, server))
  return run(LOAD_CORE, [nginx, '-c', `${at}/nginx.conf`], port)
}

export async function startNginx(upstream: number): Promise<Program> {
  const [nginx, port] = await Promise.all([nginxProgram(), freePort()])
  const at = directory()
  const http = `
  upstream stock { server 127.0.0.1:${upstream}; keepalive 128; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location / { proxy_pass http://stock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }
  }`
  writeFileSync(`${at}/nginx.conf`, nginxConfig(at, http))
  return run(PROXY_CORE, [nginx, '-c', `${at}/nginx.conf`], port)
}

export async function startHaproxy(upstream: number): Promise<Program> {
  const [haproxy, port] = await Promise.all([haproxyProgram(), freePort()])
  const at = directory()
  writeFileSync(
    `${at}/haproxy.cfg`,
    `
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 2s
  timeout client 300s
  timeout server 300s
  http-reuse always
frontend in
  bind 127.0.0.1:${port}
  default_backend stock
backend stock
  server one 127.0.0.1:${upstream}
`,
  )
  return run(PROXY_CORE, [haproxy, '-db', '-f', `${at}/haproxy.cfg`], port)
}

/** A proxy of this directory, in JavaScript. */
export async function startScript(name: string, upstream: number): Promise<Program> {
  const port = await freePort()
  const script = path.join(ROOT, 'test/bench/proxy', name)
  return run(PROXY_CORE, [process.execPath, '--import', 'tsx', script, String(port), String(upstream)], port)
}

export interface Sidecar extends Program {
  readonly adminPort: number
  readonly inboundPort: number
}

let plain: string | undefined

/** The sidecar as plain JavaScript: what Node 20 needs besides to run its sources is not its own. */
function plainSidecar(): string {
  if (plain === undefined) {
    writePlain((plain = directory()))
    writeFileSync(`${plain}/sidecar.js`, "import { main } from './sidecar-plugin/src/main.js'\nawait main()\n")
  }
  return `${plain}/sidecar.js`
}

/**
 * @param args beside the ports; `--cpu-prof` and its like go to Node by `HOLDFAST_BENCH_NODE`
 * @param isPlain false runs the sources through `tsx`, as the program does on a Node that does not take types
 */
export async function startSidecar(registryPort: number, args: readonly string[], isPlain = true): Promise<Sidecar> {
  const [admin, outbound, inbound] = await Promise.all([freePort(), freePort(), freePort()])
  const node = (process.env.HOLDFAST_BENCH_NODE ?? '').split(' ').filter(Boolean)
  const started = await run(
    PROXY_CORE,
    [
      ...[process.execPath, ...node],
      ...(isPlain ? [plainSidecar()] : [path.join(ROOT, 'sidecar-plugin/bin/holdfast-sidecar.js')]),
      ...['--registry', `http://127.0.0.1:${registryPort}`, '--no-file-cache', '--drain-settle', '0ms'],
      ...['--admin-port', String(admin), '--outbound-port', String(outbound), '--inbound-port', String(inbound)],
      ...args,
    ],
    admin,
  )
  return { ...started, port: outbound, adminPort: admin, inboundPort: inbound }
}
