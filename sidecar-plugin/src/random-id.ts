import type { Random } from '@holdfast/registry-client/clock'

/** 128 bits in hexadecimal. */
export function randomId(random: Random): string {
  let id = ''
  for (let part = 0; part < 4; part++)
    id += Math.floor(random() * 0x1_0000_0000)
      .toString(16)
      .padStart(8, '0')
  return id
}
