/**
 * `npm run bench [-- NAME …]`: measures side by side and prints each row with its ratio to the row it is held against.
 * Nothing here passes or fails: a timing says something of this machine on this day, the ratios within one run more.
 */

import { cpus, totalmem } from 'node:os'
import { client } from './client.ts'
import { etcd } from './etcd.ts'
import { fanout } from './fanout.ts'
import { proxy } from './proxy.ts'
import { registry } from './registry.ts'
import { resolve } from './resolve.ts'
import { returns } from './returns.ts'
import { start } from './start.ts'

const BENCHES = { resolve, client, start, returns, registry, fanout, etcd, proxy } as const

const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !Object.keys(BENCHES).includes(name))
if (unknown.length > 0 || wanted.includes('--help')) {
  console.error(`Usage: npm run bench -- [${Object.keys(BENCHES).join('|')}] …`)
  process.exit(2)
}
console.log(
  `Node ${process.version}, ${cpus().length} × ${cpus()[0]?.model ?? 'unknown'}, ${Math.round(totalmem() / 2 ** 30)} GiB`,
)
for (const [name, bench] of Object.entries(BENCHES)) if (wanted.length === 0 || wanted.includes(name)) await bench()
process.exit(0)
