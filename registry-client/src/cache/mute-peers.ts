/** Peers that kept somebody waiting for nothing. */

interface Mute {
  reason: string
  probes: number
}

/** What a question has told of a peer; `unsaid` when it was given up before. */
export type Speech = 'spoke' | 'unsaid' | { readonly silent: string }

/**
 * The next ones do not wait for such a peer too: only a few at a time, who find out when it speaks again. Holds no more
 * than there are peers.
 */
export class MutePeers {
  readonly #maxProbes: number
  readonly #mute = new Map<string, Mute>()

  /** @param maxProbes how many may ask a mute peer at once */
  constructor(maxProbes: number) {
    this.#maxProbes = maxProbes
  }

  /** Of a peer that is not to be asked now, why; of any other, what is to be called when the question has ended. */
  begin(url: string): string | ((speech: Speech) => void) {
    const mute = this.#mute.get(url)
    if (mute === undefined) return (speech) => this.#heard(url, speech)
    if (mute.probes >= this.#maxProbes) return mute.reason
    mute.probes++
    return (speech) => {
      mute.probes--
      this.#heard(url, speech)
    }
  }

  #heard(url: string, speech: Speech): void {
    if (speech === 'unsaid') return
    const mute = this.#mute.get(url)
    if (speech === 'spoke') this.#mute.delete(url)
    else if (mute) mute.reason = speech.silent
    else this.#mute.set(url, { reason: speech.silent, probes: 0 })
  }
}
