/** By what a service is found in this process's maps, and named in its status and its log. */
export function keyOf(namespace: string, service: string): string {
  return `${namespace}/${service}`
}
