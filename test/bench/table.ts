import Table from 'cli-table3'

/** Prints a table under a title; numbers stand to the right. */
export function print(title: string, head: readonly string[], rows: readonly (readonly (string | number)[])[]): void {
  const table = new Table({
    head: [...head],
    colAligns: head.map((_, index) => (index === 0 ? 'left' : 'right')),
    style: { head: [], border: [] },
  })
  for (const row of rows) table.push(row.map((cell) => (typeof cell === 'number' ? round(cell) : cell)))
  console.log(`\n${title}\n${table.toString()}`)
}

export function round(value: number): string {
  return Math.abs(value) >= 100 ? Math.round(value).toLocaleString('en') : value.toPrecision(3)
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5)
}

/** @param share of the values that are smaller, below 1 */
export function quantile(values: readonly number[], share: number): number {
  const sorted = Float64Array.from(values).sort()
  return sorted[Math.floor(sorted.length * share)] ?? NaN
}

export function ratio(value: number, against: number): string {
  return `${(value / against).toFixed(2)}×`
}
