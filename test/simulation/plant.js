/**
 * Preloaded by processes that run with a planted fault: hands over another text of one source file, before it is
 * translated. See `planted-faults.ts`.
 */

import { register } from 'node:module'
import { isMainThread } from 'node:worker_threads'

let planted

if (isMainThread && process.env.HOLDFAST_PLANTED)
  register(import.meta.url, { data: JSON.parse(process.env.HOLDFAST_PLANTED) })

export function initialize(data) {
  planted = data
}

export async function load(url, context, nextLoad) {
  if (planted === undefined || url.split('?')[0] !== planted.url) return nextLoad(url, context)
  return { format: 'module', source: planted.source, shortCircuit: true }
}
