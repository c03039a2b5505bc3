/* The floor: one thread that copies bytes between two sockets and understands nothing of them.
 * usage: relay LISTEN_PORT BACKEND_PORT   (loopback) */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct side { int fd; struct side *peer; int dead; };

static char buffer[65536];

static void set_nodelay(int fd) { int one = 1; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); }

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* Small answers fit the socket buffer; a full one is waited for, which is fair to the peers at 1 KiB. */
static int copy_once(struct side *from) {
    ssize_t got = recv(from->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0) return errno == EAGAIN ? 0 : -1;
    if (got == 0) return -1;
    for (ssize_t sent = 0; sent < got;) {
        ssize_t n = send(from->peer->fd, buffer + sent, got - sent, MSG_NOSIGNAL);
        if (n < 0) return -1;
        sent += n;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) { fprintf(stderr, "usage: relay LISTEN_PORT BACKEND_PORT\n"); return 2; }
    struct sockaddr_in here = loopback(atoi(argv[1])), there = loopback(atoi(argv[2]));
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1024)) { perror("listen"); return 1; }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            struct side *side = ready[i].data.ptr;
            if (!side) {
                int client = accept(listener, NULL, NULL), server = socket(AF_INET, SOCK_STREAM, 0);
                if (client < 0 || connect(server, (struct sockaddr *)&there, sizeof there)) { close(client); close(server); continue; }
                set_nodelay(client); set_nodelay(server);
                struct side *pair = calloc(2, sizeof *pair);
                pair[0] = (struct side){client, &pair[1], 0}; pair[1] = (struct side){server, &pair[0], 0};
                for (int k = 0; k < 2; k++) {
                    struct epoll_event add = {.events = EPOLLIN, .data.ptr = &pair[k]};
                    epoll_ctl(poll, EPOLL_CTL_ADD, pair[k].fd, &add);
                }
            } else if (!side->dead && copy_once(side) < 0) {
                /* The pair is closed and not freed: another event of this batch may still name it. */
                side->dead = side->peer->dead = 1;
                close(side->fd); close(side->peer->fd);
            }
        }
    }
}
