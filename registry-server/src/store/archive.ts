/** A store at rest, as the operator's commands see it: read whole as of one moment, or made whole. */

/** What is wrong with a record, with one that should be there, or with the whole. */
export interface StoredProblem {
  readonly key: string
  readonly problem: string
}

/** A record with the key and the value that it has on every engine, history included. */
export interface PortableRecord {
  readonly key: string
  readonly value: unknown
}

/** What a store is besides its records. */
export interface StoreIdentity {
  readonly epoch: string
  readonly revision: number
}

export interface StorePicture extends StoreIdentity {
  /** In the order of their keys, those that cannot be read with the reason. Read once. */
  readonly records: Iterable<PortableRecord | StoredProblem> | AsyncIterable<PortableRecord | StoredProblem>
  /** What the engine finds wrong besides; known once the records were read. */
  readonly problems: readonly StoredProblem[]
}

export interface StoreArchive {
  /** The engine, as in the setting. */
  readonly kind: string
  /** Where the state is, for people. */
  readonly location: string
  /**
   * Everything as of one moment, also while registries use the store. Changes nothing.
   * @throws StoreRefused when there is no store, or one that cannot be read at all
   */
  read(): Promise<StorePicture>
  /** @throws StoreRefused when a store could not be created, because there is something already. Changes nothing. */
  refuseUnlessEmpty(): void | Promise<void>
  /**
   * Makes a store with these records where none is: all of it or nothing.
   * @param records sound, in any order
   * @throws StoreRefused
   */
  create(identity: StoreIdentity, records: Iterable<PortableRecord>): Promise<void>
}
