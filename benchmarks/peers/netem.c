/* A network of several machines on one: every network namespace has a line to a switch, with a delay, loss, a rate and
 * a plug.
 *
 *   netem SEED NAMESPACE:ADDRESS ...
 *
 * Opens the TUN device net0 in each namespace of /run/netns, gives it ADDRESS (IPv4, all in one /24) and carries IP
 * packets between them. A packet passes two lines: out over its sender's, in over its receiver's. On each line, in each
 * direction: with the probability LOSS it is lost, by itself; it leaves when the token bucket allows (a line with a rate
 * holds at most QUEUE bytes that wait, and drops what comes then); it arrives DELAY later, plus or minus a uniform
 * JITTER, never before the one ahead of it.
 *
 * Commands on standard input, a line each; the answer is one line, "ok", a JSON object, or "error ...":
 *   set NAMESPACE delay|jitter MILLISECONDS      set NAMESPACE loss PROBABILITY
 *   set NAMESPACE rate MEGABIT_A_SECOND          set NAMESPACE queue|burst KILOBYTES      (rate 0: no limit)
 *   cut NAMESPACE      join NAMESPACE      stats
 * At the end of standard input it ends, and the devices with it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_NODES = 64, MOST_PACKETS = 1 << 18, LARGEST = 2048, MTU = 1500, BATCH = 64, OUT = 0, IN = 1 };

typedef struct {
    double tat;       /* when the bucket would be empty, ns */
    int64_t last;     /* arrival of the packet ahead */
    uint64_t carried, bytes, lost, full, unplugged;
} Direction;

typedef struct {
    char name[128];
    uint32_t address;
    int device, cut;
    double delay, jitter, loss, rate, queue, burst; /* ns, ns, 0..1, bytes a ns, bytes, bytes */
    Direction ways[2];
} Node;

typedef struct {
    int64_t at;
    uint64_t number; /* equal times keep their order */
    int from, to, arrived, size;
    unsigned char bytes[LARGEST];
} Packet;

static Node nodes[MOST_NODES];
static int node_count;
static Packet *heap[MOST_PACKETS];
static int heap_size;
static uint64_t numbered, state;

static void fail(const char *what) {
    fprintf(stderr, "netem: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Uniform in [0, 1): splitmix64. */
static double uniform(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static int before(const Packet *one, const Packet *two) {
    return one->at != two->at ? one->at < two->at : one->number < two->number;
}

static void push(Packet *packet) {
    int at = heap_size++;
    for (; at && before(packet, heap[(at - 1) / 2]); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = packet;
}

static Packet *pop(void) {
    Packet *first = heap[0], *last = heap[--heap_size];
    int at = 0;
    for (int child; (child = 2 * at + 1) < heap_size; at = child) {
        if (child + 1 < heap_size && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[at] = heap[child];
    }
    if (heap_size) heap[at] = last;
    return first;
}

/* One direction of a line: when the packet comes out of it, or -1. */
static int64_t pass(Node *node, int which, int size, int64_t time) {
    Direction *way = &node->ways[which];
    double leaves = (double)time;
    if (node->cut) return way->unplugged++, -1;
    if (node->loss > 0 && uniform() < node->loss) return way->lost++, -1;
    if (node->rate > 0) {
        double least = (double)time - node->burst / node->rate;
        double tat = way->tat > least ? way->tat : least;
        if ((tat - (double)time) * node->rate > node->queue) return way->full++, -1;
        way->tat = tat + size / node->rate;
        if (way->tat > leaves) leaves = way->tat;
    }
    double wait = node->delay + (node->jitter > 0 ? node->jitter * (2 * uniform() - 1) : 0);
    int64_t arrives = (int64_t)leaves + (wait > 0 ? (int64_t)wait : 0);
    if (arrives < way->last) arrives = way->last;
    way->last = arrives;
    way->carried++;
    way->bytes += size;
    return arrives;
}

static int owner(uint32_t address) {
    for (int at = 0; at < node_count; at++)
        if (nodes[at].address == address) return at;
    return -1;
}

static void take(int from, int64_t time) {
    static Packet *spare;
    for (int count = 0; count < BATCH; count++) {
        if (!spare && !(spare = malloc(sizeof *spare))) fail("memory");
        ssize_t size = read(nodes[from].device, spare->bytes, LARGEST);
        if (size <= 0) return;
        uint32_t target;
        if (size < 20 || spare->bytes[0] >> 4 != 4) continue; /* not IPv4 */
        memcpy(&target, spare->bytes + 16, 4);
        int to = owner(target);
        if (to < 0) continue;
        if (heap_size == MOST_PACKETS) {
            nodes[from].ways[OUT].full++;
            continue;
        }
        int64_t at = pass(&nodes[from], OUT, (int)size, time);
        if (at < 0) continue;
        spare->at = at, spare->number = numbered++, spare->from = from, spare->to = to;
        spare->size = (int)size, spare->arrived = 0;
        push(spare);
        spare = NULL;
    }
}

static void deliver(int64_t time) {
    while (heap_size && heap[0]->at <= time) {
        Packet *packet = pop();
        if (!packet->arrived) {
            int64_t at = pass(&nodes[packet->to], IN, packet->size, packet->at);
            if (at >= 0) {
                packet->arrived = 1;
                packet->at = at;
                push(packet);
                continue;
            }
        } else if (write(nodes[packet->to].device, packet->bytes, packet->size) != packet->size) {
            nodes[packet->to].ways[IN].full++;
        }
        free(packet);
    }
}

static void stats(void) {
    static const char *ways[] = {"out", "in"};
    printf("{");
    for (int at = 0; at < node_count; at++) {
        printf("%s\"%s\": {", at ? ", " : "", nodes[at].name);
        for (int which = OUT; which <= IN; which++) {
            Direction *way = &nodes[at].ways[which];
            printf("%s\"%s\": {\"carried\": %lu, \"bytes\": %lu, \"lost\": %lu, \"full\": %lu, \"unplugged\": %lu}",
                   which ? ", " : "", ways[which], way->carried, way->bytes, way->lost, way->full, way->unplugged);
        }
        printf("}");
    }
    printf("}\n");
}

static int set(Node *node, const char *what, double value) {
    if (!strcmp(what, "delay")) node->delay = value * 1e6;
    else if (!strcmp(what, "jitter")) node->jitter = value * 1e6;
    else if (!strcmp(what, "loss") && value <= 1) node->loss = value;
    else if (!strcmp(what, "rate")) node->rate = value / 8e3;
    else if (!strcmp(what, "queue")) node->queue = value * 1e3;
    else if (!strcmp(what, "burst")) node->burst = value * 1e3;
    else return 0;
    return 1;
}

static void obey(char *line) {
    char verb[16] = "", name[128] = "", what[16] = "";
    double value = -1;
    int words = sscanf(line, "%15s %127s %15s %lf", verb, name, what, &value);
    Node *node = NULL;
    for (int at = 0; at < node_count; at++)
        if (!strcmp(nodes[at].name, name)) node = &nodes[at];
    if (words == 1 && !strcmp(verb, "stats")) stats();
    else if (words == 2 && node && (!strcmp(verb, "cut") || !strcmp(verb, "join"))) node->cut = *verb == 'c', puts("ok");
    else if (words == 4 && node && !strcmp(verb, "set") && value >= 0 && set(node, what, value)) puts("ok");
    else printf("error %s\n", line);
    fflush(stdout);
}

/* Reads commands; 0 at the end of the input. */
static int commands(void) {
    static char text[4096];
    static size_t held;
    ssize_t got = read(STDIN_FILENO, text + held, sizeof text - 1 - held);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
    if (got <= 0) return 0;
    held += (size_t)got;
    text[held] = 0;
    char *line = text, *end;
    for (; (end = strchr(line, '\n')); line = end + 1) *end = 0, obey(line);
    held -= (size_t)(line - text);
    memmove(text, line, held);
    return held < sizeof text - 1;
}

static void request(int sock, unsigned long what, struct ifreq *about, const char *words) {
    if (ioctl(sock, what, about) < 0) fail(words);
}

static void raise_device(int sock, const char *name) {
    struct ifreq about = {0};
    strncpy(about.ifr_name, name, IFNAMSIZ - 1);
    request(sock, SIOCGIFFLAGS, &about, "flags of a device");
    about.ifr_flags |= IFF_UP;
    request(sock, SIOCSIFFLAGS, &about, "starting a device");
}

/* In the namespace of the calling thread: net0 with its address, and loopback. */
static int open_device(uint32_t address) {
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (device < 0 || sock < 0) fail("/dev/net/tun");
    struct ifreq about = {.ifr_name = "net0"};
    about.ifr_flags = IFF_TUN | IFF_NO_PI;
    request(device, TUNSETIFF, &about, "TUNSETIFF");
    struct sockaddr_in *in = (struct sockaddr_in *)&about.ifr_addr;
    *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = address};
    request(sock, SIOCSIFADDR, &about, "address");
    in->sin_addr.s_addr = htonl(0xffffff00u);
    request(sock, SIOCSIFNETMASK, &about, "mask");
    about.ifr_mtu = MTU;
    request(sock, SIOCSIFMTU, &about, "MTU");
    about.ifr_qlen = 10000;
    request(sock, SIOCSIFTXQLEN, &about, "queue of the device");
    raise_device(sock, "net0");
    raise_device(sock, "lo");
    close(sock);
    return device;
}

static void add_node(char *argument, int own) {
    char path[256], *colon = strchr(argument, ':');
    Node *node = &nodes[node_count++];
    if (!colon || (size_t)(colon - argument) >= sizeof node->name) errno = EINVAL, fail("NAMESPACE:ADDRESS");
    *colon = 0;
    strcpy(node->name, argument);
    if (inet_pton(AF_INET, colon + 1, &node->address) != 1) errno = EINVAL, fail("address");
    node->queue = 250e3;
    node->burst = 15e3;
    snprintf(path, sizeof path, "/run/netns/%s", node->name);
    int space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET) < 0) fail(path);
    node->device = open_device(node->address);
    close(space);
    if (setns(own, CLONE_NEWNET) < 0) fail("own namespace");
}

int main(int count, char **arguments) {
    if (count < 3 || count - 2 > MOST_NODES) return fputs("netem SEED NAMESPACE:ADDRESS ...\n", stderr), 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    state = strtoull(arguments[1], NULL, 10);
    int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (own < 0) fail("own namespace");
    for (int at = 2; at < count; at++) add_node(arguments[at], own);
    puts("ready");
    fflush(stdout);
    struct pollfd wanted[MOST_NODES + 1];
    for (int at = 0; at < node_count; at++) wanted[at] = (struct pollfd){nodes[at].device, POLLIN, 0};
    wanted[node_count] = (struct pollfd){STDIN_FILENO, POLLIN, 0};
    for (;;) {
        int64_t left = heap_size ? heap[0]->at - now() : 1000000000;
        if (left < 0) left = 0;
        struct timespec wait = {left / 1000000000, left % 1000000000};
        if (ppoll(wanted, (nfds_t)node_count + 1, &wait, NULL) < 0 && errno != EINTR) fail("poll");
        int64_t time = now();
        for (int at = 0; at < node_count; at++)
            if (wanted[at].revents & POLLIN) take(at, time);
        deliver(now());
        if (wanted[node_count].revents && !commands()) return 0;
    }
}
