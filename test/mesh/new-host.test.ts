/** A host that is new in the middle of an outage: nothing in its memory, nothing on its disk, and no registry. */

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { freePort } from '../support/free-port.ts'
import { eventually, Mesh, type Host } from './mesh.ts'

const CLI = fileURLToPath(new URL('../../registry-client/bin/holdfast.js', import.meta.url))

async function order(host: Host) {
  const answer = await fetch(`http://127.0.0.1:${host.ports.app}/orders/1`)
  const body = (await answer.json()) as { item?: { left: number; view: string }; error?: string }
  return { status: answer.status, ...body }
}

async function drill(words: readonly string[]): Promise<{ code: number; out: string; error: string }> {
  const child = spawn(process.execPath, [CLI, 'drill', ...words], { stdio: ['ignore', 'pipe', 'pipe'] })
  let out = ''
  let error = ''
  child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (error += chunk.toString()))
  const [code] = (await once(child, 'close')) as [number]
  return { code, out, error }
}

interface ShownView {
  readonly source: string
  readonly age: number
  readonly cursor: string
  readonly nodes: readonly { readonly id: string }[]
}

test('starts by what a sidecar of another host knows, and is like any other once the registry is back', async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'))
  const mesh = new Mesh({ directory })
  t.after(async () => {
    await mesh.stop('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  })
  const viewOf = (host: Host) => host.admin('GET', '/v1/views/stock') as Promise<ShownView>
  const adminOf = (host: Host) => `http://127.0.0.1:${host.ports.admin}`

  await mesh.startRegistry()
  const peerPort = await freePort()
  const known = await mesh.addHost('shop', 'known', {}, ['--peer-port', String(peerPort)])
  const stock = await mesh.addHost('stock')
  await stock.register()
  await eventually(
    () => order(known),
    ({ status }) => status === 200,
    'the first order',
  )
  await eventually(
    () => drill(['--sidecar', adminOf(known), '--service', 'stock', '--level', 'file']),
    ({ code }) => code === 0,
    'a file of the view',
  )
  await mesh.registry.stop('SIGKILL')

  const fresh = await mesh.addHost('shop', 'fresh', {}, ['--peers', `http://127.0.0.1:${peerPort}`])
  // Not known there yet, and yet it would resolve: from the peer, which is really asked.
  const before = await drill(['--sidecar', adminOf(fresh), '--service', 'stock', '--json'])
  assert.equal(before.code, 0, before.error)
  assert.match(before.out, /"level": "peer"/)
  const none = await drill(['--sidecar', `${adminOf(known)},${adminOf(fresh)}`, '--service', 'stock,never'])
  assert.equal(none.code, 1)
  assert.match(none.out, /never +NO/)

  const atLeast = await viewOf(known)
  const first = await order(fresh)
  const shown = await viewOf(fresh)
  const atMost = await viewOf(known)
  assert.equal(first.status, 200)
  assert.match(first.item!.view, /^peer; age=\d+$/)
  assert.deepEqual([shown.source, shown.cursor, shown.nodes], ['peer', atLeast.cursor, atLeast.nodes])
  // Dated from before the peer was asked, so it may be a second older, and is never younger.
  assert.ok(shown.age >= atLeast.age && shown.age <= atMost.age + 1_000, `${atLeast.age} ${shown.age} ${atMost.age}`)
  t.diagnostic(
    `age at the peer ${atLeast.age} ms, at the new host ${shown.age} ms, at the peer after it ${atMost.age} ms`,
  )

  await eventually(
    () => drill(['--sidecar', adminOf(fresh), '--service', 'stock', '--level', 'file']),
    ({ code }) => code === 0,
    'the new host has its own file',
  )
  await known.sidecar.stop('SIGKILL')
  await fresh.sidecar.stop('SIGKILL')
  await fresh.startSidecar()
  const again = await order(fresh)
  assert.equal(again.status, 200)
  // From its file, which knows that a peer said it.
  assert.match(again.item!.view, /^peer; age=\d+$/)
  assert.ok((await viewOf(fresh)).age >= shown.age, 'a restart made the view younger')

  await mesh.startRegistry()
  await eventually(
    () => order(fresh),
    ({ item }) => item?.view.startsWith('memory;') === true,
    'the view is the registry’s again',
  )
  const answer = await fetch(`${mesh.registryUrl}/v1/services/stock`)
  const registryView = (await answer.json()) as ShownView
  const settled = await eventually(
    () => viewOf(fresh),
    ({ cursor }) => cursor === registryView.cursor,
    'what the registry says',
  )
  assert.deepEqual(
    settled.nodes.map(({ id }) => id),
    registryView.nodes.map(({ id }) => id),
  )
})
