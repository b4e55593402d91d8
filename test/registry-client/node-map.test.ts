import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { inspect } from 'node:util'
import { NodeMap } from '../../registry-client/src/node-map.ts'
import { seededRandom } from '../support/seeded-random.ts'

interface Item {
  readonly id: string
  readonly weight: number
}

const SEEDS = 80

function item(id: number, weight = 1): Item {
  return Object.freeze({ id: `n${id}`, weight })
}

function items(count: number): Item[] {
  return Array.from({ length: count }, (_, id) => item(id))
}

function contentOf(map: ReadonlyMap<string, Item>): [string, Item][] {
  return [...map].sort(([a], [b]) => (a < b ? -1 : 1))
}

/** What differs, found the slow way. */
function differing(one: ReadonlyMap<string, Item>, other: ReadonlyMap<string, Item>): string[] {
  return [...new Set([...one.keys(), ...other.keys()])].filter((id) => one.get(id) !== other.get(id)).sort()
}

describe('a map of nodes', () => {
  test('holds, finds and tells what changed like a plain map, through any history of changes', () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const random = seededRandom(seed)
      const below = (limit: number) => Math.floor(random() * limit)
      // Small ones are emptied and rebuilt often, large ones are several branches deep.
      const ids = [3, 40, 300, 3_000][seed % 4]!
      const start = items(below(ids))
      let map = NodeMap.of(start)
      let model = new Map(start.map((value) => [value.id, value]))
      const past: [NodeMap<Item>, Map<string, Item>][] = []
      for (let step = 0; step < 30; step++) {
        const put = Array.from({ length: below(6) }, (_, at) => item(below(ids), 1_000 * step + at))
        // Most steps of every third seed take away much more than they bring, so that the map starts anew.
        const share = seed % 3 === 0 && model.size < 1_000 ? below(model.size) : below(4)
        const remove = Array.from({ length: share }, () => item(below(ids)).id)
        if (random() < 0.4) past.push([map, model])
        // Two changes of one map now and then: history branches.
        const [from, fromModel] = random() < 0.15 && past.length > 0 ? past[below(past.length)]! : [map, model]
        map = from.with(put, remove)
        model = new Map(fromModel)
        for (const id of remove) model.delete(id)
        for (const value of put) model.set(value.id, value)
        const message = `seed ${seed}, step ${step}`
        assert.equal(map.size, model.size, message)
        if (ids <= 40 || step % 10 === 9) assert.deepEqual(contentOf(map), contentOf(model), message)
        for (let probe = 0; probe < 20; probe++) {
          const { id } = item(below(ids))
          assert.equal(map.get(id), model.get(id), message)
          assert.equal(map.has(id), model.has(id), message)
        }
        for (const [older, olderModel] of past.slice(-2)) {
          assert.deepEqual(map.changesSince(older).sort(), differing(model, olderModel), message)
          assert.deepEqual(older.changesSince(map).sort(), differing(model, olderModel), message)
        }
      }
      for (const [older, olderModel] of past)
        assert.deepEqual(contentOf(older), contentOf(olderModel), `seed ${seed}: an older map has changed`)
    }
  })

  test('keeps the order of those that stay', () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const random = seededRandom(seed)
      const below = (limit: number) => Math.floor(random() * limit)
      let map = NodeMap.of(items(100))
      assert.deepEqual(
        [...map.keys()],
        items(100).map(({ id }) => id),
      )
      for (let step = 0; step < 40; step++) {
        const before = [...map.keys()]
        map = map.with(
          Array.from({ length: below(20) }, () => item(below(300), step)),
          Array.from({ length: below(30) }, () => item(below(300)).id),
        )
        const after = new Set(map.keys())
        const stayed = new Set(before.filter((id) => after.has(id)))
        assert.deepEqual(
          [...after].filter((id) => stayed.has(id)),
          [...stayed],
          `seed ${seed}, step ${step}`,
        )
      }
    }
  })

  test('tells what changed without looking at what two maps share', () => {
    let looked = 0
    class Watched implements Item {
      readonly weight = 1
      readonly #id: string
      constructor(id: string) {
        this.#id = id
      }
      get id(): string {
        looked++
        return this.#id
      }
    }
    const map = NodeMap.of(Array.from({ length: 10_000 }, (_, at) => new Watched(`n${at}`)))
    looked = 0
    const next = map.with([new Watched('n77'), new Watched('new')], ['n5000'])
    assert.deepEqual(next.changesSince(map).sort(), ['n5000', 'n77', 'new'])
    assert.ok(looked < 20, `${looked} ids were read`)
    assert.deepEqual(map.changesSince(map), [])
  })

  test('does not add up ids that are gone', () => {
    let map = NodeMap.of(items(10))
    for (let at = 10; at < 5_000; at++) map = map.with([item(at)], [item(at - 10).id])
    assert.deepEqual(
      [...map.keys()].sort(),
      items(5_000)
        .slice(-10)
        .map(({ id }) => id)
        .sort(),
    )
    // Ids that were never forgotten would have kept one trie over all of them, and one origin.
    assert.equal(map.with([item(1)], []).changesSince(NodeMap.of(items(2))).length, 12)
  })

  test('can be compared with any other map', () => {
    const map = NodeMap.of(items(3))
    const plain = new Map(items(4).map((value) => [value.id, value]))
    plain.set('n0', map.get('n0')!)
    assert.deepEqual(map.changesSince(plain).sort(), ['n1', 'n2', 'n3'])
    assert.equal(NodeMap.from(map), map)
    assert.deepEqual(contentOf(NodeMap.from(plain)), contentOf(plain))
  })

  test('is read in every way in which a map is', () => {
    const map: ReadonlyMap<string, Item> = NodeMap.of(items(40))
    const model = new Map(items(40).map((value) => [value.id, value]))
    assert.deepEqual([...map.keys()], [...model.keys()])
    assert.deepEqual([...map.values()], [...model.values()])
    assert.deepEqual([...map.entries()], [...model.entries()])
    assert.deepEqual([...map], [...model])
    const seen: [string, Item][] = []
    map.forEach((value, id, of) => {
      assert.equal(of, map)
      seen.push([id, value])
    })
    assert.deepEqual(seen, [...model])
    assert.equal(inspect(map), inspect(model))
    assert.deepEqual([...NodeMap.of<Item>([])], [])
  })

  test('offers nothing that would change it', () => {
    const map = NodeMap.of(items(3))
    const open = map as unknown as Record<string, unknown>
    for (const name of ['set', 'delete', 'clear']) assert.equal(open[name], undefined, name)
    for (const name of Object.keys(open)) assert.throws(() => (open[name] = 0), TypeError, name)
    assert.throws(() => (open.extra = 0), TypeError)
    assert.throws(() => (map.list as Item[]).push(item(9)), TypeError)
    assert.throws(() => Map.prototype.set.call(map, 'n9', item(9)), TypeError)
    assert.deepEqual([...map.values()], items(3))
  })

  test('is never found equal to another by a comparison that cannot see its content', () => {
    assert.notDeepEqual(NodeMap.of(items(3)), NodeMap.of([item(7), item(8), item(9)]))
  })
})
