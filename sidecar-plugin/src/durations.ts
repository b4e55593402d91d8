import type { Metric, MetricValue } from 'prom-client'

/** Upper bounds in seconds. */
const BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10] as const

interface Series {
  readonly counts: Float64Array
  count: number
  sum: number
}

/** A histogram by direction, as Prometheus reads it; counting costs one array access. */
export class Durations {
  readonly #name: string
  readonly #help: string
  readonly #series: ReadonlyMap<string, Series>

  constructor(name: string, help: string, directions: readonly string[]) {
    this.#name = name
    this.#help = help
    this.#series = new Map(
      directions.map((direction) => [direction, { counts: new Float64Array(BUCKETS.length), count: 0, sum: 0 }]),
    )
  }

  observe(direction: string, seconds: number): void {
    const series = this.#series.get(direction)!
    series.count++
    series.sum += seconds
    for (let i = 0; i < BUCKETS.length; i++)
      if (seconds <= BUCKETS[i]!) {
        series.counts[i]!++
        return
      }
  }

  /** For the library's registry. */
  get metric(): Metric {
    const collector = { name: this.#name, get: () => Promise.resolve(this.#collect()), reset() {} }
    return collector as unknown as Metric
  }

  #collect(): object {
    const values: (MetricValue<string> & { metricName: string })[] = []
    for (const [direction, { counts, count, sum }] of this.#series) {
      if (count === 0) continue
      let below = 0
      for (const [i, le] of BUCKETS.entries()) {
        below += counts[i]!
        values.push({ metricName: `${this.#name}_bucket`, labels: { direction, le }, value: below })
      }
      values.push({ metricName: `${this.#name}_bucket`, labels: { direction, le: '+Inf' }, value: count })
      values.push({ metricName: `${this.#name}_sum`, labels: { direction }, value: sum })
      values.push({ metricName: `${this.#name}_count`, labels: { direction }, value: count })
    }
    return { name: this.#name, help: this.#help, type: 'histogram', aggregator: 'sum', values }
  }
}
