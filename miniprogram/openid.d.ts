export type OpenIDError = Error & {
    error: string;
    status: number;
    detail: string;
};
export function login(url: string, data?: object): Promise<Record<string, any>>;
export function getOpenID(baseURL: string): Promise<{
    openid: string;
    unionid: string;
}>;
