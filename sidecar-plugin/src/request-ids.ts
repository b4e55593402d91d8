import type { Random } from '@holdfast/registry-client/clock'

/** Ids that share what was drawn; more would make them longer than they need to be. */
const IDS_PER_DRAW = 2 ** 32

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'))

/** Ids of requests: 96 bits that are drawn, and a count in 32 more, because drawing all of them costs more than a layer. */
export class RequestIds {
  readonly #random: Random
  #drawn = ''
  #count = IDS_PER_DRAW

  constructor(random: Random) {
    this.#random = random
  }

  /** 32 digits in hexadecimal. */
  next(): string {
    if (this.#count === IDS_PER_DRAW) this.#draw()
    const count = this.#count++
    return this.#drawn + HEX[count >>> 24] + HEX[(count >>> 16) & 255] + HEX[(count >>> 8) & 255] + HEX[count & 255]
  }

  #draw(): void {
    this.#count = 0
    this.#drawn = ''
    for (let byte = 0; byte < 12; byte++) this.#drawn += HEX[Math.floor(this.#random() * 256)]!
  }
}
