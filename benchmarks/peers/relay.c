/* A network between two processes on one machine: TCP connections pass through with a delay and a rate.
 *
 *   relay BYTES_A_SECOND DELAY_NANOSECONDS PARTY:LISTEN:TARGET ...
 *
 * Connections to port LISTEN of 127.0.0.1, which party 0 or 1 opens, go on to port TARGET. All that party 0 sends
 * shares one line, all that party 1 sends another. A byte leaves the line when those before it have left (rate 0: no
 * limit) and arrives DELAY later. Prints "ready", and at the end of its standard input the bytes that each line has
 * carried.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 18, MOST_PORTS = 64, MOST_PIPES = 512 };
/* What is due is handed on at most so often; a byte is never early, and late by this at most. */
static const int64_t QUANTUM = 50000;

typedef struct Piece {
    struct Piece *next;
    int64_t begun; /* when its first byte enters the line */
    size_t size, given;
    char bytes[];
} Piece;

typedef struct {
    int source, target, line, ended, used;
    Piece *first, *last;
} Pipe;

typedef struct {
    int listener, party, target;
} Port;

static double rate;
static int64_t delay;
static int64_t busy[2];
static uint64_t carried[2];
static Pipe pipes[MOST_PIPES];
static Port ports[MOST_PORTS];
static int port_count, pipe_count;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void give_up(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in local(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void prepare(int sock) {
    int one = 1;
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(sock, F_SETFL, fcntl(sock, F_GETFL) | O_NONBLOCK);
}

static void add_pipe(int source, int target, int line) {
    int place = 0;
    while (place < pipe_count && pipes[place].used) place++;
    if (place == MOST_PIPES) give_up("too many connections");
    if (place == pipe_count) pipe_count++;
    pipes[place] = (Pipe){.source = source, .target = target, .line = line, .used = 1};
}

static void welcome(const Port *port) {
    int near = accept(port->listener, NULL, NULL), far = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = local(port->target);
    if (near < 0 || far < 0) give_up("accept");
    if (connect(far, (struct sockaddr *)&address, sizeof address)) { /* the other party may not listen yet */
        close(near);
        close(far);
        return;
    }
    prepare(near);
    prepare(far);
    add_pipe(near, far, port->party);
    add_pipe(far, near, 1 - port->party);
}

/* Read what there is, and note when it enters the line. */
static void take(Pipe *pipe) {
    static char buffer[PIECE];
    ssize_t size = read(pipe->source, buffer, PIECE);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) {
        pipe->ended = 1;
        return;
    }
    Piece *piece = malloc(sizeof *piece + size);
    if (!piece) give_up("malloc");
    memcpy(piece->bytes, buffer, size);
    int64_t time = now();
    *piece = (Piece){.begun = busy[pipe->line] > time ? busy[pipe->line] : time, .size = size};
    busy[pipe->line] = piece->begun + (rate > 0 ? (int64_t)(1e9 * size / rate) : 0);
    carried[pipe->line] += size;
    if (pipe->last) pipe->last->next = piece;
    else pipe->first = piece;
    pipe->last = piece;
}

static int64_t arrival(const Piece *piece, size_t size) {
    return piece->begun + delay + (rate > 0 ? (int64_t)(1e9 * size / rate) : 0);
}

/* Hand on what is due. Returns when there is more: a time, 0 where the target is full, or INT64_MAX. */
static int64_t give(Pipe *pipe) {
    while (pipe->first) {
        Piece *piece = pipe->first;
        int64_t time = now();
        size_t due = piece->size;
        if (arrival(piece, due) > time) {
            double passed = (double)(time - piece->begun - delay);
            due = passed > 0 ? (size_t)(passed * rate / 1e9) : 0;
            if (due > piece->size) due = piece->size;
        }
        if (due > piece->given) {
            ssize_t size = write(pipe->target, piece->bytes + piece->given, due - piece->given);
            if (size < 0 && errno == EAGAIN) return 0;
            if (size < 0) size = due - piece->given; /* nobody listens any more */
            piece->given += size;
        }
        if (piece->given < due) return 0;
        if (piece->given < piece->size) {
            int64_t whole = arrival(piece, piece->size), soon = now() + QUANTUM;
            int64_t first = arrival(piece, piece->given + 1);
            if (soon < first) soon = first;
            return whole < soon ? whole : soon;
        }
        pipe->first = piece->next;
        if (!pipe->first) pipe->last = NULL;
        free(piece);
    }
    if (pipe->ended == 1) {
        shutdown(pipe->target, SHUT_WR);
        pipe->ended = 2;
    }
    return INT64_MAX;
}

/* Close connections of which both directions have ended. */
static void tidy(void) {
    for (int one = 0; one < pipe_count; one++)
        for (int other = one + 1; other < pipe_count; other++) {
            Pipe *a = &pipes[one], *b = &pipes[other];
            if (!a->used || !b->used || a->source != b->target || a->ended != 2 || b->ended != 2) continue;
            close(a->source);
            close(a->target);
            a->used = b->used = 0;
        }
}

static void listen_at(const char *text) {
    int party, from, to, one = 1, sock = socket(AF_INET, SOCK_STREAM, 0);
    if (port_count == MOST_PORTS || sscanf(text, "%d:%d:%d", &party, &from, &to) != 3 || party < 0 || party > 1) {
        fprintf(stderr, "not PARTY:LISTEN:TARGET: %s\n", text);
        exit(1);
    }
    struct sockaddr_in address = local(from);
    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(sock, (struct sockaddr *)&address, sizeof address) || listen(sock, 64)) give_up("listen");
    ports[port_count++] = (Port){.listener = sock, .party = party, .target = to};
}

int main(int count, char **words) {
    struct pollfd polled[1 + MOST_PORTS + 2 * MOST_PIPES];
    if (count < 4) {
        fprintf(stderr, "relay BYTES_A_SECOND DELAY_NANOSECONDS PARTY:LISTEN:TARGET ...\n");
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    rate = atof(words[1]);
    delay = atoll(words[2]);
    for (int place = 3; place < count; place++) listen_at(words[place]);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int used = 0, whose[2 * MOST_PIPES];
        int64_t next = INT64_MAX;
        polled[used++] = (struct pollfd){.fd = 0, .events = POLLIN};
        for (int place = 0; place < port_count; place++)
            polled[used++] = (struct pollfd){.fd = ports[place].listener, .events = POLLIN};
        int before = used;
        for (int place = 0; place < pipe_count; place++) {
            if (!pipes[place].used) continue;
            int64_t time = give(&pipes[place]);
            if (time == 0) {
                whose[used - before] = -1;
                polled[used++] = (struct pollfd){.fd = pipes[place].target, .events = POLLOUT};
            } else if (time < next) {
                next = time;
            }
            if (!pipes[place].ended) {
                whose[used - before] = place;
                polled[used++] = (struct pollfd){.fd = pipes[place].source, .events = POLLIN};
            }
        }
        tidy();
        int64_t wait = next - now();
        if (wait < 0) wait = 0;
        struct timespec limit = {.tv_sec = wait / 1000000000LL, .tv_nsec = wait % 1000000000LL};
        if (ppoll(polled, used, next == INT64_MAX ? NULL : &limit, NULL) <= 0) continue;
        if (polled[0].revents) break;
        for (int place = 0; place < port_count; place++)
            if (polled[1 + place].revents) welcome(&ports[place]);
        for (int place = before; place < used; place++)
            if (polled[place].revents && whose[place - before] >= 0) take(&pipes[whose[place - before]]);
    }
    printf("%llu %llu\n", (unsigned long long)carried[0], (unsigned long long)carried[1]);
    return 0;
}
