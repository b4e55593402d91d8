/**
 * A process that starts from its cache directory, with nobody at the registry's address. Prints, in ms since Node began
 * to run: the library is there, it is open, the first service is resolved, all are.
 */

import type * as Library from '@holdfast/registry-client'

const [library, cacheDir, count] = process.argv.slice(2) as [string, string, string]
const marks = [performance.now()]
const { connect } = (await import(library)) as typeof Library
marks.push(performance.now())
const client = await connect({ endpoints: ['http://127.0.0.1:1'], cacheDir, maxNodes: 10_000_000 })
marks.push(performance.now())
const services = Array.from({ length: Number(count) }, (_, index) => `service-${index}`)
const first = await client.resolve(services[0]!)
if (first.nodes.length !== 100 || first.source !== 'file') throw new Error('this is not what was kept')
process.stdout.write('first\n')
marks.push(performance.now())
await Promise.all(services.map((service) => client.resolve(service)))
process.stdout.write('all\n')
marks.push(performance.now())
process.stdout.write(`${JSON.stringify(marks)}\n`)
process.exit(0)
