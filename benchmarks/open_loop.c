// Open loop: sends requests at a fixed rate whatever becomes of the earlier ones, and times each from when it was due,
// so that a server that stops answering is not spared the requests that it kept from being sent.
//
//   open_loop PORT RATE SECONDS CONNECTIONS < REQUEST
//
// Writes a float for each request that was due, in order: seconds from then to the end of its answer; negative if the
// answer was no 200; infinite if there was none within DRAIN seconds of the last.  A connection carries one request at a
// time; one that is due while all are busy is sent as soon as one is free.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DRAIN 1.0
#define LONGEST_WAIT 0.05
#define ROOM (64 * 1024)

struct connection {
    int socket;
    long asked;    // which request is under way
    size_t filled; // of the answer
    char answer[ROOM];
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

// Length of the whole answer; 0 while its head is not complete.
static size_t length_of(struct connection *c) {
    char *end = memmem(c->answer, c->filled, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    char *length = strcasestr(c->answer, "\r\ncontent-length:");
    size_t size = end + 4 - c->answer;
    if (length) size += strtoul(length + 17, NULL, 10);
    *end = '\r';
    if (!length || size >= ROOM) {
        fputs("an answer without a length, or one that is too long\n", stderr);
        exit(1);
    }
    return size;
}

int main(int count, char **given) {
    if (count != 5) return 2;
    int port = atoi(given[1]), connections = atoi(given[4]);
    double rate = atof(given[2]), seconds = atof(given[3]);
    long all = lround(rate * seconds), sent = 0, answered = 0;
    char request[ROOM];
    size_t request_size = fread(request, 1, sizeof request, stdin);
    float *took = malloc(sizeof *took * (all + 1));
    struct connection *each = calloc(connections, sizeof *each);
    struct connection **idle = malloc(sizeof *idle * connections);
    // In turn, so that none is idle for so long that the server hangs up on it.
    int first = 0, idles = connections, poll = epoll_create1(0), on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < connections; i++) {
        struct connection *c = idle[i] = &each[i];
        c->socket = socket(AF_INET, SOCK_STREAM, 0);
        if (c->socket < 0 || connect(c->socket, (struct sockaddr *)&to, sizeof to)) fail("connect");
        setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, c->socket, &event)) fail("epoll_ctl");
    }
    for (long i = 0; i < all; i++) took[i] = INFINITY;

    prctl(PR_SET_TIMERSLACK, 1);
    double begun = now();
    while (answered < all && now() < begun + seconds + DRAIN) {
        while (sent < all && idles && begun + sent / rate <= now()) {
            struct connection *c = idle[first];
            first = (first + 1) % connections;
            idles--;
            c->asked = sent++;
            c->filled = 0;
            if (write(c->socket, request, request_size) != (ssize_t)request_size) fail("write");
        }
        // Asleep until the next one is due: who spins has used up its turn when others want the core.
        double wait = sent < all && idles ? fmin(fmax(begun + sent / rate - now(), 0), LONGEST_WAIT) : LONGEST_WAIT;
        struct timespec until = {.tv_nsec = (long)(wait * 1e9)};
        struct epoll_event events[256];
        int ready = epoll_pwait2(poll, events, 256, &until, NULL);
        if (ready < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            ssize_t got = read(c->socket, c->answer + c->filled, ROOM - c->filled);
            if (got <= 0) {
                fputs("the server hung up\n", stderr);
                return 1;
            }
            c->filled += got;
            size_t length = length_of(c);
            if (!length || c->filled < length) continue;
            double after = now() - (begun + c->asked / rate);
            took[c->asked] = memcmp(c->answer + 8, " 200", 4) ? -after : after;
            answered++;
            idle[(first + idles++) % connections] = c;
        }
    }
    fwrite(took, sizeof *took, all, stdout);
    return 0;
}
