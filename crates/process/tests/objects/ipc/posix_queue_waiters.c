// object: processes that wait for messages of an unlinked POSIX message queue and for room in a full one, with and without a limit of time
// status: captured
#include "object.h"

#include <fcntl.h>
#include <mqueue.h>
#include <sys/wait.h>

static mqd_t queue_of(int room) {
    struct mq_attr about = {.mq_maxmsg = room, .mq_msgsize = 64};
    mqd_t queue = mq_open("/waiters", O_RDWR | O_CREAT | O_EXCL, 0600, &about);
    CHECK(queue != (mqd_t)-1 && mq_unlink("/waiters") == 0);
    return queue;
}

static struct timespec after(long milliseconds) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    time.tv_sec += milliseconds / 1000;
    time.tv_nsec += milliseconds % 1000 * 1000000;
    if (time.tv_nsec >= 1000000000) time.tv_sec++, time.tv_nsec -= 1000000000;
    return time;
}

int main(void) {
    mqd_t questions = queue_of(8), answers = queue_of(8), full = queue_of(1);
    unsigned number, asked = 0;
    // One answers, waiting without a limit.
    if (!fork()) {
        char bytes[64];
        for (;;) {
            if (mq_receive(questions, bytes, sizeof bytes, &number) < 0) _exit(1);
            if (mq_send(answers, bytes, 4, number) < 0) _exit(2);
        }
    }
    // One waits for room that comes in the end only.
    CHECK(mq_send(full, "one", 3, 0) == 0);
    pid_t waiter = fork();
    if (!waiter) _exit(mq_send(full, "two", 3, 0) ? 1 : 0);
    // Their names are gone, and others may have them.
    mqd_t other = mq_open("/waiters", O_RDWR | O_CREAT | O_EXCL, 0600, 0);
    CHECK(other != (mqd_t)-1 && close(other) == 0);
    ready();
    do {
        char bytes[64];
        struct timespec limit = after(1);
        CHECK(mq_timedreceive(answers, bytes, sizeof bytes, 0, &limit) == -1);
        if (errno == EINTR) continue;
        CHECK_EQUAL(errno, ETIMEDOUT);
        CHECK(mq_send(questions, (char *)&asked, 4, asked % 32) == 0);
        limit = after(60000);
        ssize_t length;
        while ((length = mq_timedreceive(answers, bytes, sizeof bytes, &number, &limit)) < 0 && errno == EINTR) {}
        CHECK_EQUAL(length, 4);
        CHECK_EQUAL(*(unsigned *)bytes, asked);
        CHECK_EQUAL(number, asked % 32);
        asked++;
    } while (go_on());
    char bytes[64];
    int status;
    CHECK_EQUAL(waitpid(waiter, &status, WNOHANG), 0);
    CHECK(mq_receive(full, bytes, sizeof bytes, 0) == 3 && !memcmp(bytes, "one", 3));
    CHECK(mq_receive(full, bytes, sizeof bytes, 0) == 3 && !memcmp(bytes, "two", 3));
    CHECK_EQUAL(waitpid(waiter, &status, 0), waiter);
    CHECK_EQUAL(status, 0);
    CHECK(mq_open("/waiters", O_RDWR) != (mqd_t)-1);
    PASS();
}
