/*
 * Posts one request again and again over keep-alive connections and tells how long the answers took.
 *
 *   closed  each connection sends its next request as soon as it has its answer: finds the saturation
 *   open    every request has a time of its own (Poisson arrivals, the same for every server), whatever the server does.
 *           A request that finds no connection free waits for one, and its latency counts from the time it was meant to
 *           be sent: a server that stalls cannot keep requests from being counted (coordinated omission)
 *   idle    every connection has one answer and is then held, silent, until standard input ends
 *
 * One thread, one epoll; times are CLOCK_MONOTONIC. The result is one line of JSON on standard output; anything but a
 * whole HTTP/1.1 answer with a Content-Length ends the program with status 1 and a sentence.
 *
 * usage: load closed|open|idle PORT REQUEST_FILE CONNECTIONS SECS RATE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192, READ_BYTES = 65536, N_EVENTS = 256, AT_ONCE = 64 };
static const double GRACE_SECS = 10.0;

struct connection {
    int fd;
    bool waits_for_room; /* the socket takes no more of the request for now */
    size_t sent;
    size_t head_bytes;
    long body_left; /* -1: the head is not complete */
    int status;
    double since; /* when its request was sent, or in an open loop was meant to be sent */
    char head[HEAD_BYTES];
};

struct series {
    double *values;
    size_t count, room;
};

static char *request;
static size_t request_bytes;
static int epoll;
static struct connection *connections;
static long n_connections;
static struct series latencies, lateness;
static long statuses[600];
static long n_answers;
static double last_answer;

/* The connections without a request, first come first served. */
static long *free_ring;
static long free_first, n_free;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void add(struct series *series, double value) {
    if (series->count == series->room) {
        series->room = series->room ? 2 * series->room : 1 << 16;
        series->values = realloc(series->values, series->room * sizeof(double));
        if (series->values == NULL) fail("out of memory");
    }
    series->values[series->count++] = value;
}

static int by_value(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Return a quantile of a sorted series in milliseconds: the smallest value that so large a share does not exceed. */
static double quantile_ms(const struct series *series, double share) {
    if (series->count == 0) return 0.0;
    size_t rank = (size_t)ceil(share * (double)series->count);
    return series->values[rank > 0 ? rank - 1 : 0] * 1e3;
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) fail("cannot read %s: %s", path, strerror(errno));
    request_bytes = (size_t)ftell(file);
    rewind(file);
    request = malloc(request_bytes);
    if (request == NULL || fread(request, 1, request_bytes, file) != request_bytes) fail("cannot read %s", path);
    fclose(file);
}

static void open_connection(struct connection *connection, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("cannot connect: %s", strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0) fail("epoll: %s", strerror(errno));
}

static void wait_for_room(struct connection *connection, bool wanted) {
    if (connection->waits_for_room == wanted) return;
    connection->waits_for_room = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = connection};
    epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
}

static void send_more(struct connection *connection) {
    while (connection->sent < request_bytes) {
        ssize_t sent = send(connection->fd, request + connection->sent, request_bytes - connection->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            wait_for_room(connection, true);
            return;
        }
        if (sent < 0) fail("the server broke a connection: %s", strerror(errno));
        connection->sent += (size_t)sent;
    }
    wait_for_room(connection, false);
}

static void begin(struct connection *connection, double since) {
    connection->sent = connection->head_bytes = 0;
    connection->body_left = -1;
    connection->since = since;
    send_more(connection);
}

/* Look whether the head of an answer is complete; note status and length of the body. */
static void read_head(struct connection *connection) {
    char *end = memmem(connection->head, connection->head_bytes, "\r\n\r\n", 4);
    if (end == NULL) {
        if (connection->head_bytes == HEAD_BYTES) fail("an answer has a head of more than %d bytes", HEAD_BYTES);
        return;
    }
    long length = -1;
    if (connection->head_bytes < 12 || memcmp(connection->head, "HTTP/1.1 ", 9) != 0) fail("an answer is not HTTP/1.1");
    connection->status = atoi(connection->head + 9);
    for (char *line = connection->head; line < end; line = (char *)memmem(line, (size_t)(end + 2 - line), "\r\n", 2) + 2)
        if (strncasecmp(line, "content-length:", 15) == 0) length = atol(line + 15);
    if (length < 0) fail("an answer (%d) has no Content-Length", connection->status);
    connection->body_left = length - (long)(connection->head_bytes - (size_t)(end + 4 - connection->head));
    if (connection->body_left < 0) fail("an answer is longer than it says");
}

/* Take what a connection has for us; true when its answer is complete. */
static bool receive(struct connection *connection) {
    static char body[READ_BYTES];
    for (;;) {
        bool in_head = connection->body_left < 0;
        char *to = in_head ? connection->head + connection->head_bytes : body;
        size_t room = in_head ? HEAD_BYTES - connection->head_bytes : READ_BYTES;
        ssize_t got = recv(connection->fd, to, room, 0);
        if (got < 0 && errno == EAGAIN) return false;
        if (got < 0) fail("the server broke a connection: %s", strerror(errno));
        if (got == 0) fail("the server closed a connection");
        if (in_head) {
            connection->head_bytes += (size_t)got;
            read_head(connection);
        } else {
            connection->body_left -= got;
            if (connection->body_left < 0) fail("an answer is longer than it says");
        }
        if (connection->body_left == 0) break;
    }
    if (connection->sent < request_bytes) fail("the server answered %d before it had the request", connection->status);
    last_answer = now();
    add(&latencies, last_answer - connection->since);
    if (connection->status >= 100 && connection->status < 600) statuses[connection->status]++;
    n_answers++;
    return true;
}

static void set_free(struct connection *connection) {
    free_ring[(free_first + n_free++) % n_connections] = connection - connections;
}

static struct connection *take_free(void) {
    struct connection *connection = &connections[free_ring[free_first]];
    free_first = (free_first + 1) % n_connections;
    n_free--;
    return connection;
}

/* Wait for events; hand out the connections whose answers are complete to `answered`. */
static void turn(int timeout_ms, void (*answered)(struct connection *)) {
    struct epoll_event events[N_EVENTS];
    int count = epoll_wait(epoll, events, N_EVENTS, timeout_ms);
    for (int at = 0; at < count; at++) {
        struct connection *connection = events[at].data.ptr;
        if (connection == NULL) continue; /* the timer */
        if (events[at].events & EPOLLOUT) send_more(connection);
        if (events[at].events & (EPOLLIN | EPOLLERR | EPOLLHUP) && receive(connection)) answered(connection);
    }
}

static double closed_until;
static long n_busy;

static void send_again(struct connection *connection) {
    if (last_answer < closed_until)
        begin(connection, last_answer);
    else
        n_busy--;
}

static long closed_loop(double secs) {
    double started = now();
    closed_until = started + secs;
    n_busy = n_connections;
    for (long at = 0; at < n_connections; at++) begin(&connections[at], now());
    while (n_busy > 0 && now() < closed_until + GRACE_SECS) turn(1000, send_again);
    return n_busy;
}

/* The gap to the next arrival; a fixed seed gives every server the same arrivals (xorshift64*, Vigna 2014). */
static double gap(double rate) {
    static uint64_t state = 0x9E3779B97F4A7C15u;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    double uniform = (double)((state * 0x2545F4914F6CDD1Du) >> 11) / 9007199254740992.0;
    return -log1p(-uniform) / rate;
}

static long n_waited; /* requests that found no connection free when they were due */

static long open_loop(double secs, double rate) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    if (timer < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event) != 0) fail("timer: %s", strerror(errno));
    for (long at = 0; at < n_connections; at++) set_free(&connections[at]);
    double started = now(), end = started + secs, due = started + gap(rate), armed = 0.0;
    bool starved = false;
    while (due <= end || n_free < n_connections) {
        double at = now();
        if (at > end + GRACE_SECS) break;
        while (due <= end && due <= at && n_free > 0) {
            if (starved)
                n_waited++;
            else
                add(&lateness, at - due);
            begin(take_free(), due);
            due += gap(rate);
            at = now();
        }
        starved = due <= end && due <= at;
        if (!starved && due <= end && armed != due) {
            struct itimerspec when = {{0, 0}, {(time_t)due, (long)((due - floor(due)) * 1e9)}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
            armed = due;
        }
        turn(100, set_free);
    }
    long unfinished = n_connections - n_free;
    for (; due <= end; due += gap(rate)) unfinished++;
    return unfinished;
}

/* Give every connection one answer, some at a time, then hold all of them. */
static void hold_idle(int port) {
    for (long first = 0; first < n_connections; first += AT_ONCE) {
        long last = first + AT_ONCE < n_connections ? first + AT_ONCE : n_connections;
        for (long at = first; at < last; at++) {
            open_connection(&connections[at], port);
            begin(&connections[at], now());
        }
        double until = now() + GRACE_SECS;
        while (n_free < last) {
            if (now() > until) fail("an idle connection had no answer");
            turn(1000, set_free);
        }
    }
    printf("{\"held\": %ld}\n", n_connections);
    fflush(stdout);
    while (getchar() != EOF) {
    }
}

static void print_result(double elapsed_secs, long unfinished) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_secs = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                      (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    qsort(latencies.values, latencies.count, sizeof(double), by_value);
    qsort(lateness.values, lateness.count, sizeof(double), by_value);
    printf("{\"answers\": %ld, \"statuses\": {", n_answers);
    const char *separator = "";
    for (int status = 0; status < 600; status++)
        if (statuses[status]) {
            printf("%s\"%d\": %ld", separator, status, statuses[status]);
            separator = ", ";
        }
    printf("}, \"elapsed_secs\": %.6f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"p999_ms\": %.4f, \"max_ms\": %.4f, ",
           elapsed_secs, quantile_ms(&latencies, 0.5), quantile_ms(&latencies, 0.99), quantile_ms(&latencies, 0.999),
           quantile_ms(&latencies, 1.0));
    printf("\"cpu_secs\": %.4f, \"unfinished\": %ld, \"waited\": %ld, \"late_p99_ms\": %.4f}\n", cpu_secs, unfinished,
           n_waited, quantile_ms(&lateness, 0.99));
}

int main(int argc, char **argv) {
    if (argc != 7) fail("usage: load closed|open|idle PORT REQUEST_FILE CONNECTIONS SECS RATE");
    int port = atoi(argv[2]);
    double secs = atof(argv[5]), rate = atof(argv[6]);
    n_connections = atol(argv[4]);
    read_request(argv[3]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc((size_t)n_connections, sizeof *connections);
    free_ring = calloc((size_t)n_connections, sizeof *free_ring);
    if (connections == NULL || free_ring == NULL) fail("out of memory");
    if (strcmp(argv[1], "idle") == 0) {
        hold_idle(port);
        return 0;
    }
    for (long at = 0; at < n_connections; at++) open_connection(&connections[at], port);
    double started = now();
    long unfinished = strcmp(argv[1], "open") == 0 ? open_loop(secs, rate) : closed_loop(secs);
    print_result((n_answers ? last_answer : now()) - started, unfinished);
    return 0;
}
