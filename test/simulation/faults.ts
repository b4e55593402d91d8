/**
 * What goes wrong in a run, and what operators do: a list of faults with their times, drawn from the seed. Each stands
 * for itself, its end included, so that any of them can be left out: see `shrink.ts`.
 */

import { formatDuration, type Random } from '@holdfast/registry-client/clock'
import { LIES, type LieKind } from './lies.ts'
import type { BadReads, DiskStep } from './sim-disk.ts'

export type FaultAction =
  | { readonly kind: 'cut'; readonly a: string; readonly b: string }
  | { readonly kind: 'mute'; readonly a: string; readonly b: string }
  | {
      readonly kind: 'partition'
      readonly a: string
      readonly b: string
      readonly oneWay: boolean
      readonly ms: number
    }
  | { readonly kind: 'slow'; readonly a: string; readonly b: string; readonly factor: number; readonly ms: number }
  | { readonly kind: 'flaky'; readonly a: string; readonly b: string; readonly chance: number; readonly ms: number }
  | { readonly kind: 'repeat'; readonly a: string; readonly b: string; readonly chance: number; readonly ms: number }
  | { readonly kind: 'kill'; readonly process: string; readonly ms: number }
  | { readonly kind: 'stop'; readonly process: string; readonly ms: number }
  | { readonly kind: 'freeze'; readonly process: string; readonly ms: number }
  | { readonly kind: 'power'; readonly host: string; readonly ms: number }
  | { readonly kind: 'clock'; readonly host: string; readonly byMs: number }
  | {
      readonly kind: 'disk'
      readonly host: string
      readonly steps: readonly DiskStep[]
      readonly code: string
      readonly ms: number
    }
  | { readonly kind: 'slow disk'; readonly host: string; readonly factor: number; readonly ms: number }
  | ({ readonly kind: 'bad reads'; readonly host: string } & BadReads)
  | ({ readonly kind: 'bad start'; readonly process: string; readonly ms: number } & BadReads)
  | { readonly kind: 'new host'; readonly host: string; readonly ms: number }
  | { readonly kind: 'liar'; readonly process: string; readonly lie: LieKind; readonly ms: number }
  | { readonly kind: 'deaf'; readonly process: string; readonly ms: number }
  | { readonly kind: 'etcd stop'; readonly member: number; readonly ms: number }
  | { readonly kind: 'etcd freeze'; readonly member: number; readonly ms: number }
  | { readonly kind: 'etcd down'; readonly ms: number }
  | { readonly kind: 'etcd elect' }
  | { readonly kind: 'etcd compact' }
  | { readonly kind: 'etcd full'; readonly ms: number }
  | { readonly kind: 'override'; readonly service: string; readonly id: string; readonly weight: number | null }
  | { readonly kind: 'deregister'; readonly service: string; readonly id: string }
  | { readonly kind: 'static'; readonly service: string; readonly id: string }
  | { readonly kind: 'policy'; readonly service: string; readonly timeout: string | null }
  | {
      readonly kind: 'override file'
      readonly host: string
      readonly service: string
      readonly malformed: boolean
      readonly ms: number
    }
  | { readonly kind: 'wipe'; readonly ms: number }
  | { readonly kind: 'restore'; readonly ms: number }

export type Fault = FaultAction & { readonly atMs: number }
export type FaultKind = Fault['kind']

/** What there is to break. */
export interface Stage {
  readonly replicas: readonly string[]
  readonly clients: readonly string[]
  readonly clientHosts: readonly string[]
  readonly members: readonly string[]
  readonly services: readonly string[]
  /** Whether clients ask each other. */
  readonly hasPeers: boolean
  /** Nodes that somebody registers. */
  readonly nodes: readonly { readonly service: string; readonly id: string }[]
}

const DAY_MS = 86_400_000
const DISK_FAULTS: readonly { readonly steps: readonly DiskStep[]; readonly code: string }[] = [
  { steps: ['write'], code: 'ENOSPC' },
  { steps: ['sync'], code: 'ENOSPC' },
  { steps: ['rename', 'link'], code: 'ENOSPC' },
  { steps: ['sync'], code: 'EIO' },
  { steps: ['read'], code: 'EIO' },
  { steps: ['write', 'makeDirectory', 'rename', 'link', 'remove', 'touch'], code: 'EROFS' },
  { steps: ['read', 'write', 'stat', 'list'], code: 'EMFILE' },
]

/** How likely each kind is, once it is part of a run. */
const KINDS: Readonly<Record<FaultKind, number>> = {
  cut: 3,
  mute: 2,
  partition: 4,
  slow: 2,
  flaky: 2,
  repeat: 2,
  kill: 4,
  stop: 3,
  freeze: 3,
  power: 2,
  clock: 2,
  disk: 3,
  'slow disk': 1,
  'bad reads': 2,
  'bad start': 3,
  'new host': 2,
  liar: 3,
  deaf: 2,
  'etcd stop': 2,
  'etcd freeze': 2,
  'etcd down': 1,
  'etcd elect': 1,
  'etcd compact': 1,
  'etcd full': 1,
  override: 2,
  deregister: 2,
  static: 1,
  policy: 1,
  'override file': 2,
  wipe: 0.3,
  restore: 0.3,
}

/** What a run may have beside its faults: clients that ask each other, that hold little, that ask for what is young. */
export type Trait = 'peers' | 'bounds' | 'young'

/**
 * What no run has yet, since the client does not withstand it: files that are read late (they are dated by the end of the
 * reading of their override, may end in a view that no ping confirms, and a service is told empty before them), liars
 * (who are believed of services that the registry never heard of, and take the room of what is known), and a registry
 * that takes back what it has said while nodes are kept in quarantine.
 */
const NOT_YET: ReadonlySet<FaultKind | Trait> = new Set<FaultKind | Trait>([
  'bad reads',
  'bad start',
  'liar',
  'deaf',
  'peers',
  'young',
])

/** Whether runs have it. */
export function isDue(what: FaultKind | Trait): boolean {
  return !NOT_YET.has(what)
}

/**
 * A plan for `durationMs`. Each run draws which kinds it has, and not only which faults: with all of them in every run
 * some hide what others would show.
 *
 * Source: A. Groce et al., "Swarm Testing", ISSTA 2012.
 */
export function planOf(random: Random, stage: Stage, durationMs: number): Fault[] {
  const kinds = (Object.keys(KINDS) as FaultKind[])
    .filter((kind) => isDue(kind) && (kind !== 'liar' || stage.hasPeers))
    .filter((kind) => random() < (KINDS[kind] < 1 ? KINDS[kind] : 0.5))
  const weights = kinds.map((kind) => KINDS[kind])
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  const count = 1 + Math.floor(random() * (durationMs / 2_500))
  const faults: Fault[] = []
  const rare = new Set<FaultKind>()
  for (let index = 0; kinds.length > 0 && index < count; index++) {
    let at = random() * total
    const kind = kinds.find((_, place) => (at -= weights[place]!) < 0) ?? kinds[0]!
    const atMs = Math.floor(random() * durationMs)
    // A store is lost once in a while, not every few seconds.
    if (KINDS[kind] < 1 && rare.size > 0) continue
    if (KINDS[kind] < 1) rare.add(kind)
    faults.push({ atMs, ...actionOf(kind, random, stage) })
  }
  return faults.sort((a, b) => a.atMs - b.atMs)
}

function actionOf(kind: FaultKind, random: Random, stage: Stage): FaultAction {
  const any = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!
  const upTo = (ms: number) => Math.ceil(random() * random() * ms)
  const process = () => any([...stage.replicas, ...stage.clients])
  const pair = () =>
    random() < 0.6
      ? { a: any(stage.clientHosts), b: any(stage.replicas) }
      : { a: any(stage.replicas), b: any(stage.members) }
  const badReads = (): BadReads =>
    random() < 0.5
      ? { reads: 1 + Math.floor(random() * 4), code: any(['EIO', 'EMFILE']), lateMs: 0 }
      : { reads: 1, code: undefined, lateMs: 1_500 + Math.floor(random() * 3_500) }
  const { service, id } = any(stage.nodes)
  switch (kind) {
    case 'cut':
    case 'mute':
      return { kind, ...pair() }
    case 'partition': {
      const { a, b } = pair()
      const oneWay = random() < 0.4
      return { kind, ...(random() < 0.5 ? { a, b } : { a: b, b: a }), oneWay, ms: upTo(60_000) }
    }
    case 'slow':
      return { kind, ...pair(), factor: 2 + Math.floor(random() * 500), ms: upTo(60_000) }
    case 'flaky':
      return { kind, ...pair(), chance: Math.round(random() * 20) / 100, ms: upTo(30_000) }
    case 'repeat':
      return { kind, a: any(stage.clientHosts), b: any(stage.replicas), chance: 0.5, ms: upTo(60_000) }
    case 'kill':
    case 'stop':
      return { kind, process: process(), ms: upTo(40_000) }
    case 'freeze':
      return { kind, process: process(), ms: upTo(40_000) }
    case 'power':
      return { kind, host: any([...stage.clientHosts, ...stage.clientHosts, ...stage.replicas]), ms: upTo(40_000) }
    case 'clock':
      return {
        kind,
        host: any([...stage.clientHosts, ...stage.replicas]),
        byMs: Math.floor((random() * 2 - 1) * (random() < 0.5 ? DAY_MS : 5_000)),
      }
    case 'disk':
      return { kind, host: any(stage.clientHosts), ...any(DISK_FAULTS), ms: upTo(60_000) }
    case 'slow disk':
      return { kind, host: any(stage.clientHosts), factor: 10 + Math.floor(random() * 2_000), ms: upTo(30_000) }
    case 'bad reads':
      return { kind, host: any(stage.clientHosts), ...badReads() }
    case 'bad start':
      return { kind, process: any(stage.clients), ms: upTo(40_000), ...badReads() }
    case 'new host':
      return { kind, host: any(stage.clientHosts), ms: 1_000 + upTo(60_000) }
    case 'liar':
      return { kind, process: any(stage.clients), lie: any(LIES), ms: 20_000 + upTo(200_000) }
    case 'deaf':
      return { kind, process: any(stage.replicas), ms: 10_000 + upTo(50_000) }
    case 'etcd stop':
    case 'etcd freeze':
      return { kind, member: Math.floor(random() * stage.members.length), ms: upTo(40_000) }
    case 'etcd down':
    case 'etcd full':
      return { kind, ms: upTo(40_000) }
    case 'etcd elect':
    case 'etcd compact':
      return { kind }
    case 'override':
      return { kind, service, id, weight: random() < 0.3 ? null : Math.floor(random() * 1_000) }
    case 'deregister':
      return { kind, service, id }
    case 'static':
      return { kind, service, id: 'static' }
    case 'policy':
      return { kind, service, timeout: random() < 0.3 ? null : `${1 + Math.floor(random() * 9)}s` }
    case 'override file':
      return { kind, host: any(stage.clientHosts), service, malformed: random() < 0.3, ms: upTo(60_000) }
    case 'wipe':
    case 'restore':
      return { kind, ms: 1_000 + upTo(20_000) }
  }
}

/** One line. */
export function describe({ atMs, kind, ...rest }: Fault): string {
  const fields = Object.entries(rest).map(([name, value]) => {
    if (name === 'ms') return `for ${formatDuration(value as number)}`
    return name === 'a' || name === 'b'
      ? String(value)
      : `${name} ${Array.isArray(value) ? value.join('+') : String(value)}`
  })
  return `${(atMs / 1000).toFixed(3).padStart(9)}s  ${kind}  ${fields.join(', ')}`
}
