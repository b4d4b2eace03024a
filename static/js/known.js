// What the page knows of nodes and deployments before the first sample: #fleet-data, which comes anew with each change.

export class Known {
  constructor() {
    this.read();
  }

  read() {
    const data = JSON.parse(document.getElementById("fleet-data").textContent);
    const { nodes, jobs, deployments, everything } = data;
    Object.assign(this, { nodes, jobs, deployments, everything });
    this.active = new Set(data.active);
    this.byId = new Map(nodes.map((node) => [node.id, node]));
    document.querySelector("[data-legend]").hidden = !nodes.some((node) => node.gpus.length);
  }

  /** Whether a job is one of ours that runs. */
  knows(job) {
    return this.active.has(job);
  }

  /** The names of what is heard of these nodes; null: of everything. */
  get names() {
    return this.everything ? null : this.nodes.flatMap(({ id }) => [`s${id}`, `w${id}`]);
  }
}
