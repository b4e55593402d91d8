/** Tables of the command line: columns without lines, so that `awk` and people both read them. */

import Table from 'cli-table3'

export function table(head: readonly string[], rows: readonly (readonly (string | number | undefined)[])[]): string {
  const none = ''
  const output = new Table({
    ...(head.some(Boolean) && { head: head.map((name) => name.toUpperCase()) }),
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 },
    chars: Object.fromEntries(
      ['top', 'bottom', 'left', 'right', 'mid'].flatMap((side) =>
        side === 'mid'
          ? [
              ['mid', none],
              ['mid-mid', none],
              ['left-mid', none],
              ['right-mid', none],
              ['middle', none],
            ]
          : [
              [side, none],
              [`${side}-mid`, none],
              [`${side}-left`, none],
              [`${side}-right`, none],
            ],
      ),
    ),
  })
  for (const row of rows) output.push(row.map((cell) => String(cell ?? 0)))
  return output
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n')
}
