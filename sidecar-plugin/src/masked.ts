/** A password may stand in a registry's URL. It is for the registry only: neither logs nor answers show it. */

const PASSWORD = /(\bhttps?:\/\/[^\s/:@"]*):[^\s/"]*@/gi

/** A text with the passwords of its URLs masked. */
export function maskPasswords(text: string): string {
  return text.replace(PASSWORD, '$1:***@')
}

/** A document with the passwords of its URLs masked, as it reads in JSON. */
export function masked(document: object): object {
  return JSON.parse(JSON.stringify(document), (_key, value: unknown) =>
    typeof value === 'string' ? maskPasswords(value) : value,
  ) as object
}
