// The job as it is usually done with a framework and an SDK: gin and silenceper/wechat.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/silenceper/wechat/v2"
	"github.com/silenceper/wechat/v2/cache"
	"github.com/silenceper/wechat/v2/miniprogram/config"
	"github.com/silenceper/wechat/v2/util"
)

func main() {
	util.SetURIModifier(func(uri string) string { // leads it to the fake WeChat
		return strings.Replace(uri, "https://api.weixin.qq.com", os.Getenv("WX_BASE_URL"), 1)
	})
	auth := wechat.NewWechat().GetMiniProgram(&config.Config{
		AppID: os.Getenv("WX_APPID"), AppSecret: os.Getenv("WX_APPSECRET"), Cache: cache.NewMemory(),
	}).GetAuth()
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.Use(gin.Recovery())
	router.POST("/openid", func(c *gin.Context) {
		var login struct {
			Code string `json:"code" binding:"required"`
		}
		if err := c.ShouldBindJSON(&login); err != nil {
			c.JSON(http.StatusBadRequest, gin.H{"error": err.Error()})
			return
		}
		session, err := auth.Code2SessionContext(c, login.Code)
		if err != nil {
			c.JSON(http.StatusBadGateway, gin.H{"error": "wechat"})
			return
		}
		c.JSON(http.StatusOK, gin.H{"openid": session.OpenID})
	})
	listener, err := net.Listen("tcp", os.Getenv("ADDR"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "{\"addr\":%q}\n", listener.Addr())
	log.Fatal(http.Serve(listener, router))
}
