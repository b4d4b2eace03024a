/* The two ends of the gateway's bench, compiled so that they cost little beside what is measured.
 *
 *   gateway_wire serve                       a stand-in model server; prints its port, serves until stdin closes
 *   gateway_wire load PORT STREAMS SECONDS PACE_MS CHUNKS PATH MODEL KEY
 *
 * The server reads what to do from the request's header: X-Chunks (events of the answer, 0: one JSON document),
 * X-Pace (milliseconds between two events), X-First (milliseconds before the first). GET /aborts tells how many
 * requests were given up by their client, and when the last one was (CLOCK_MONOTONIC, seconds).
 * The load keeps STREAMS requests running, their starts spread evenly, and prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CLIENTS = 4096, BUFFER = 1 << 16, SAMPLES = 1 << 20, CARRY = 6 /* one less than "data: {" */ };

struct conn {
    int fd, chunks, left, pace, busy, usage, blocked, carry;
    size_t have;
    double due, asked, first;
    char in[16384];
};

static struct conn *conns[CLIENTS];
static char event[512];
static int event_size;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int number(const char *head, const char *name, int otherwise) {
    const char *at = strcasestr(head, name);
    return at ? atoi(at + strlen(name)) : otherwise;
}

static void framed(char *into, int *size, const char *text) {
    *size = sprintf(into, "%zx\r\n%s\r\n", strlen(text), text);
}

static const char *EVENT =
    "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,"
    "\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,"
    "\"finish_reason\":null,\"token_ids\":null}]}\n\n";
static const char *USAGE =
    "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,"
    "\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"total_tokens\":135,\"completion_tokens\":128}}\n\n";
static const char *WHOLE =
    "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":"
    "{\"role\":\"assistant\",\"content\":\"Ada\"},\"finish_reason\":\"stop\"}],"
    "\"usage\":{\"prompt_tokens\":7,\"total_tokens\":8,\"completion_tokens\":1}}";

static int put(int fd, const char *data, int size) {
    /* Heads and ends are small: when the socket is full, wait for it. */
    while (size > 0) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd one = {fd, POLLOUT, 0};
            poll(&one, 1, 1000);
            continue;
        }
        if (n < 0) return -1;
        data += n, size -= n;
    }
    return 0;
}

static int aborts;
static double aborted_at;

static void document(int fd, const char *text) {
    char out[1024];
    int n = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(text), text);
    put(fd, out, n);
}

static void begin(struct conn *c) {
    static const char *HEAD =
        "HTTP/1.1 200 OK\r\nserver: stand-in\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return;
    size_t head = end + 4 - c->in, body = number(c->in, "\r\ncontent-length:", 0);
    if (c->have < head + body) return;
    if (!strncmp(c->in, "GET /aborts", 11)) {
        char text[80];
        sprintf(text, "{\"count\":%d,\"at\":%.6f}", aborts, aborted_at);
        document(c->fd, text);
    } else if (!(c->chunks = number(c->in, "\r\nx-chunks:", 0))) {
        document(c->fd, WHOLE);
    } else {
        c->left = c->chunks, c->busy = 1, c->pace = number(c->in, "\r\nx-pace:", 0);
        c->usage = strstr(c->in + head, "include_usage") != NULL;
        c->due = now() + number(c->in, "\r\nx-first:", 0) / 1e3;
        put(c->fd, HEAD, strlen(HEAD));
    }
    memmove(c->in, c->in + head + body, c->have -= head + body);
    c->in[c->have] = 0;
}

static void drop(struct conn *c) {
    if (c->busy) aborts++, aborted_at = now();
    conns[c->fd] = NULL;
    close(c->fd);
    free(c);
}

/* One event of one stream, if it is due. Returns 1 when the stream could go on at once. */
static int step(struct conn *c, double t) {
    if (!c->busy || c->blocked || t < c->due) return 0;
    ssize_t n = send(c->fd, event, event_size, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
        c->blocked = 1;
        return 0;
    }
    if (n < 0) return drop(c), 0;
    if (n < event_size) put(c->fd, event + n, event_size - n);
    c->due = c->pace ? c->due + c->pace / 1e3 : 0;
    if (--c->left) return !c->pace;
    char out[1024];
    int size = 0;
    if (c->usage) framed(out, &size, USAGE);
    size += sprintf(out + size, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    put(c->fd, out, size);
    c->busy = 0;
    return 0;
}

static int listening(int *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&a, sizeof a) || listen(fd, 1024)) die("listen");
    getsockname(fd, (void *)&a, &size);
    *port = ntohs(a.sin_port);
    return fd;
}

static void watch(int epoll, int fd, unsigned events) {
    struct epoll_event e = {.events = events, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
}

static void take(struct conn *c) {
    ssize_t n = recv(c->fd, c->in + c->have, sizeof c->in - 1 - c->have, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return drop(c);
    c->have += n, c->in[c->have] = 0;
    begin(c);
}

static void serve(void) {
    int port, listener = listening(&port), epoll = epoll_create1(0), one = 1;
    framed(event, &event_size, EVENT);
    watch(epoll, listener, EPOLLIN);
    watch(epoll, 0, EPOLLIN);
    printf("%d\n", port);
    fflush(stdout);
    for (int hurry = 0;;) {
        struct epoll_event ready[256];
        int n = epoll_wait(epoll, ready, 256, hurry ? 0 : 1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == 0) return;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= CLIENTS) die("too many clients");
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conns[fd] = calloc(1, sizeof(struct conn));
                    conns[fd]->fd = fd;
                    watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
                }
                continue;
            }
            if (conns[fd] && ready[i].events & EPOLLOUT) conns[fd]->blocked = 0;
            if (conns[fd] && ready[i].events & ~EPOLLOUT) take(conns[fd]);
        }
        double t = now();
        hurry = 0;
        for (int fd = 0; fd < CLIENTS; fd++)
            if (conns[fd]) hurry |= step(conns[fd], t);
    }
}

static double ttft[SAMPLES];
static int ttfts;

static int by_value(const void *a, const void *b) {
    double x = *(double *)a, y = *(double *)b;
    return (x > y) - (x < y);
}

static double quantile(double q) {
    return ttfts ? ttft[(int)(q * (ttfts - 1))] * 1e3 : -1;
}

static int dial(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (connect(fd, (void *)&a, sizeof a)) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* Counts events in what arrived, with the last CARRY bytes of the read before; 1 when the answer is complete. */
static int count(struct conn *c, char *data, int size, long *chunks) {
    char *at = data, *end = data + size;
    while ((at = memmem(at, end - at, "data: {", 7))) ++*chunks, at += 7;
    if (memmem(data, size, "[DONE]", 6)) c->left = 0;
    return !c->left && size >= 5 && !memcmp(end - 5, "0\r\n\r\n", 5);
}

static void load(char **a) {
    int port = atoi(a[0]), streams = atoi(a[1]), pace = atoi(a[3]), chunks = atoi(a[4]), epoll = epoll_create1(0);
    double seconds = atof(a[2]), start = now(), spread = pace ? pace * chunks / 1e3 : 0.2, from = start + spread;
    long counted = 0, requests = 0;
    char request[4096], body[512], *buffer = malloc(BUFFER + 64);
    sprintf(body, "{\"model\":\"%s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Who?\"}]}", a[6]);
    int size = sprintf(request,
        "POST %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
        "X-Chunks: %d\r\nX-Pace: %d\r\nContent-Length: %zu\r\n\r\n%s", a[5], a[7], chunks, pace, strlen(body), body);
    struct conn *all = calloc(streams, sizeof *all);
    char (*kept)[CARRY] = calloc(streams, CARRY);
    for (int i = 0; i < streams; i++) {
        all[i].fd = dial(port), all[i].due = start + spread * i / streams;
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &e);
    }
    double t;
    while ((t = now()) < from + seconds) {
        for (int i = 0; i < streams; i++)
            if (!all[i].busy && t >= all[i].due) {
                if (send(all[i].fd, request, size, MSG_NOSIGNAL) != size) die("send");
                all[i].busy = all[i].left = 1, all[i].asked = now(), all[i].first = 0;
            }
        struct epoll_event ready[256];
        int n = epoll_wait(epoll, ready, 256, 1);
        for (int k = 0; k < n; k++) {
            int i = ready[k].data.u32;
            struct conn *c = all + i;
            memcpy(buffer, kept[i], c->carry);
            ssize_t got = recv(c->fd, buffer + c->carry, BUFFER, 0);
            if (got <= 0) die("the connection was closed");
            t = now();
            long before = counted, seen = 0;
            int whole = got + c->carry, complete = count(c, buffer, whole, &seen);
            if (memmem(buffer, whole < 32 ? whole : 32, "HTTP/1.1 5", 10) || memmem(buffer, whole < 32 ? whole : 32, "HTTP/1.1 4", 10))
                fprintf(stderr, "%.*s\n", whole < 600 ? whole : 600, buffer), exit(1);
            if (t >= from) counted = before + seen;
            if (seen && !c->first) {
                c->first = t;
                if (t >= from && ttfts < SAMPLES) ttft[ttfts++] = t - c->asked;
            }
            c->carry = complete ? 0 : whole < CARRY ? whole : CARRY;
            memcpy(kept[i], buffer + whole - c->carry, c->carry);
            if (complete) c->busy = 0, requests += t >= from;
        }
    }
    qsort(ttft, ttfts, sizeof *ttft, by_value);
    printf("{\"chunks_per_second\":%.1f,\"requests\":%ld,\"ttft_p50_ms\":%.3f,\"ttft_p99_ms\":%.3f}\n",
           counted / (now() - from), requests, quantile(0.5), quantile(0.99));
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc == 2 && !strcmp(argv[1], "serve")) return serve(), 0;
    if (argc == 10 && !strcmp(argv[1], "load")) return load(argv + 2), 0;
    fprintf(stderr, "gateway_wire serve | load PORT STREAMS SECONDS PACE_MS CHUNKS PATH MODEL KEY\n");
    return 2;
}
