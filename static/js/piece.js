// A piece of a log, wherever it is kept: the offset at which it begins, later than asked for where nobody has it any more,
// and its bytes.

export async function piece(job, start, end) {
  const response = await fetch(`/jobs/${job}/log?start=${start}&end=${end}`);
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return [Number(response.headers.get("X-Log-Start") ?? start), new Uint8Array(await response.arrayBuffer())];
}
