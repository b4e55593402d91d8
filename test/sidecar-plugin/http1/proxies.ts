/** Other people's proxies before a service on this machine. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { findOrInstall } from '../../support/debian.ts'
import { freePort } from '../../support/free-port.ts'

export interface Proxy {
  readonly port: number
  stop(): Promise<void>
}

/** Undefined when it is missing. @param upstream the service's port */
export type StartProxy = (upstream: number) => Promise<Proxy | undefined>

export const startHaproxy: StartProxy = async (upstream) => {
  const program = await findOrInstall('haproxy', 'haproxy', 'haproxy')
  if (program === undefined) return undefined
  return run(
    program,
    (file) => ['-db', '-f', file],
    (port) => `
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
  timeout http-keep-alive 2s
frontend in
  bind 127.0.0.1:${port}
  default_backend out
backend out
  http-reuse never
  server one 127.0.0.1:${upstream}
`,
  )
}

export const startNginx: StartProxy = async (upstream) => {
  const program = await findOrInstall('nginx', 'nginx-light', 'nginx')
  if (program === undefined) return undefined
  return run(
    program,
    (file) => ['-c', file],
    (port, directory) => `
daemon off;
master_process off;
pid ${directory}/nginx.pid;
error_log ${directory}/error.log crit;
events {}
http {
  access_log off;
  client_body_temp_path ${directory};
  proxy_temp_path ${directory};
  fastcgi_temp_path ${directory};
  uwsgi_temp_path ${directory};
  scgi_temp_path ${directory};
  keepalive_timeout 2s;
  client_header_timeout 2s;
  client_body_timeout 2s;
  lingering_timeout 1s;
  lingering_time 1s;
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://127.0.0.1:${upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_ignore_client_abort on;
    }
  }
}
`,
  )
}

async function run(
  program: string,
  args: (file: string) => readonly string[],
  configuration: (port: number, directory: string) => string,
): Promise<Proxy> {
  const port = await freePort()
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-proxy-'))
  const file = path.join(directory, 'proxy.conf')
  await writeFile(file, configuration(port, directory))
  const child = spawn(program, args(file), { stdio: 'ignore' })
  const exited = once(child, 'exit')
  let hasEnded = false
  void exited.then(() => (hasEnded = true))
  while (!(await accepts(port))) if (hasEnded) throw new Error(`${program} ended before it listened`)
  return {
    port,
    stop: async () => {
      child.kill()
      await exited
      await rm(directory, { recursive: true, force: true })
    },
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    const tell = (isThere: boolean) => {
      socket.destroy()
      setImmediate(() => resolve(isThere))
    }
    socket.once('connect', () => tell(true)).once('error', () => tell(false))
  })
}
