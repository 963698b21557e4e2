// object: inotify in epoll, with a thread that waits
// status: captured
#include "object.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>

static int fd, set;
static volatile int seen;

static void *serve(void *nothing) {
    (void)nothing;
    char text[4096];
    for (;;) {
        struct epoll_event event;
        if (epoll_wait(set, &event, 1, -1) != 1) continue;
        CHECK_EQUAL(event.data.u64, 77);
        ssize_t got = read(fd, text, sizeof text);
        for (char *at = text; got > 0 && at < text + got;) {
            struct inotify_event *one = (struct inotify_event *)at;
            CHECK_EQUAL(one->mask, IN_CREATE | IN_ISDIR);
            seen++;
            at += sizeof *one + one->len;
        }
    }
    return 0;
}

int main(void) {
    fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    set = epoll_create1(0);
    CHECK_EQUAL(inotify_add_watch(fd, "/tmp", IN_CREATE), 1);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 77};
    CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    pthread_t thread;
    pthread_create(&thread, 0, serve, 0);
    ready();
    int made = 0;
    do {
        char path[32];
        snprintf(path, sizeof path, "/tmp/d%d", made++);
        CHECK(!mkdir(path, 0700));
        double begun = now();
        while (seen < made) {
            if (now() > begun + 20) FAIL("%d of %d seen", seen, made);
            usleep(100);
        }
        CHECK_EQUAL(seen, made);
    } while (go_on());
    PASS();
}
