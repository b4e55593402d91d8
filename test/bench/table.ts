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
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? NaN
}

export function ratio(value: number, against: number): string {
  return `${(value / against).toFixed(2)}×`
}
